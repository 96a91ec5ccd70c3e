"""The quality benchmark without --model is of the bundled one, at its own size."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lib_hires.standalone.benchmarks.quality.generation import (
    Sample,
    Subject,
    check,
    claim,
    generate,
)
from lib_hires.standalone.benchmarks.techniques import NATIVE
from lib_hires.standalone.bundled import MODEL
from lib_hires.standalone.pipeline.request import Request

pytestmark = pytest.mark.skipif(not MODEL.is_file(), reason="the bundled model is not there")


@pytest.mark.slow
def test_the_bundled_model_is_the_default(tmp_path: Path) -> None:
    subject = Subject(sampling=Request(steps=1))
    sample = Sample(NATIVE, 1, 50)
    assert check(subject, [sample]) == (256, 256)
    claim(tmp_path, subject, [sample])
    generate(tmp_path, subject, [sample], threads=1)
    with Image.open(sample.path(tmp_path)) as image:
        assert image.size == (256, 256)
