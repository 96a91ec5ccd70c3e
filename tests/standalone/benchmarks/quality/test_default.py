"""The quality benchmark without --model is of the bundled one, at its own size."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from PIL import Image

from lib_hires.settings import SettingsError
from lib_hires.standalone.benchmarks.quality import generation
from lib_hires.standalone.benchmarks.quality.generation import (
    Sample,
    Subject,
    check,
    claim,
    generate,
    generate_missing,
)
from lib_hires.standalone.benchmarks.techniques import NATIVE, with_upscaler
from lib_hires.standalone.bundled import CFG, MODEL
from lib_hires.standalone.pipeline.request import Request

pytestmark = pytest.mark.skipif(not MODEL.is_file(), reason="the bundled model is not there")


def test_images_of_another_upscaler_are_other_images(tmp_path: Path) -> None:
    """It is known by its content, not by its path."""
    file = tmp_path / "up.pth"
    subject, plan = Subject(), [Sample(with_upscaler(str(file))[0], 2, 50)]
    with pytest.raises(SettingsError, match=r"upscaler: .*up\.pth cannot be read \(No such file"):
        claim(tmp_path / "out", subject, plan)
    assert not (tmp_path / "out").exists()
    file.write_bytes(b"a")
    for _ in range(2):
        claim(tmp_path / "out", subject, plan)
    file.write_bytes(b"b")
    with pytest.raises(SettingsError, match="holds images of another model"):
        claim(tmp_path / "out", subject, plan)


@pytest.mark.slow
def test_the_bundled_model_is_the_default(tmp_path: Path) -> None:
    subject = Subject(sampling=Request(steps=1))
    sample = Sample(NATIVE, 1, 50)
    subject, native = check(subject, [sample])
    assert (subject.sampling.cfg, native) == (CFG, (256, 256))
    claim(tmp_path, subject, [sample])
    generate(tmp_path, subject, [sample], threads=1)
    with Image.open(sample.path(tmp_path)) as image:
        assert image.size == (256, 256)


class OneByOne:
    """A pool whose jobs are run at once, in this process."""

    def __init__(self, workers: int, mp_context: object) -> None:
        pass

    def __enter__(self) -> OneByOne:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., None], *arguments: object) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(function(*arguments))
        return done


def test_processes_share_the_threads_that_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by OMP_NUM_THREADS, where another program has the machine's other cores."""
    asked: list[int] = []
    monkeypatch.setattr(generation, "ProcessPoolExecutor", OneByOne)
    monkeypatch.setattr(generation, "generate", lambda *given: asked.append(given[-1]))
    samples = [Sample(NATIVE, 1, seed) for seed in range(4)]
    for allowed, workers in ((6, 2), (2, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda allowed=allowed: allowed)
        generate_missing(tmp_path, Subject(), samples, workers)
    assert asked == [3, 3, 1, 1, 1, 1]


class Ended:
    """What is left of a benchmark that was ended."""

    def is_alive(self) -> bool:
        return False


def test_nothing_more_is_generated_for_a_benchmark_that_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes end too: a pool's would wait for ever."""
    monkeypatch.setattr(generation, "parent_process", Ended)
    monkeypatch.setattr(os, "_exit", sys.exit)
    sample = Sample(NATIVE, 1, 50)
    with pytest.raises(SystemExit):
        generate(tmp_path, Subject(sampling=Request(steps=1)), [sample], threads=1)
    assert not sample.path(tmp_path).exists()
