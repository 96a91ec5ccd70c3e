"""The record of a run: what it counts, and its messages."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
import torch

from lib_hires.devices import allocated_peak, reset_allocated_peak
from lib_hires.run.record import PassRecord, RunRecord


def clock_of(*readings: float) -> Callable[[], float]:
    left = iter(readings)
    return lambda: next(left)


def sample(part: PassRecord, steps: int, guided: int, branches: int = 1) -> None:
    """Heun's order: a step ends between its two evaluations; every other one is native."""
    for step in range(steps):
        for evaluation in range(1 if step == steps - 1 else 2):
            part.begin_evaluation()
            for _ in range(branches if step < guided else 0):
                part.guide(native=evaluation == 0 and step % 2 == 0)
            if evaluation == 0:
                part.finish_step()


@pytest.mark.parametrize("branches", [1, 2])
def test_a_step_is_guided_once_whatever_its_evaluations(branches: int) -> None:
    part = PassRecord("text", 0, (256, 384))
    sample(part, steps=5, guided=3, branches=branches)
    assert (part.steps, part.guided_steps) == (5, 3)
    assert (part.evaluations, part.native_evaluations) == (11, 2)


def test_the_messages_of_a_whole_run() -> None:
    peaks = iter([100, 2**30, 3 * 2**30])
    record = RunRecord(clock_of(10, 11.26, 20, 23.5), lambda: next(peaks))
    with record.taking("text", (256, 384)) as part:
        sample(part, steps=5, guided=3)
        part.mix()
    with record.taking("stage", (512, 768), 1) as part:
        sample(part, steps=1, guided=0)
    assert record.summary() == (
        "3 of 6 steps guided, 1 mixed; first pass in 1.3 s, stage 1 in 3.5 s; "
        "largest memory 3.00 GiB"
    )
    assert record.lines() == [
        "first pass 384x256: 5 steps, 3 guided, 1 mixed, 11 model evaluations "
        "(2 at the native size), 1.3 s",
        "stage 1 768x512: 1 step, 1 model evaluation, 3.5 s",
    ]
    assert (record.evaluations, record.native_evaluations) == (12, 2)


def test_batches_are_added_up_and_a_stopped_one_is_named() -> None:
    record = RunRecord(clock_of(0, 1, 1, 3, 3, 4, 4, 4.5))
    for batch in range(2):
        with record.taking("text", (64, 64)) as part:
            sample(part, steps=2, guided=2)
        with suppress(KeyboardInterrupt), record.taking("hires", (128, 128)) as part:
            sample(part, steps=2 - batch, guided=0)
            if batch:
                raise KeyboardInterrupt
    assert record.lines() == [
        "first pass 64x64 in 2 batches: 4 steps, 4 guided, 8 model evaluations "
        "(2 at the native size), 2.0 s",
        "Hires. fix 128x128 in 2 batches: 3 steps, 4 model evaluations, 2.5 s, "
        "stopped before its end",
    ]
    assert record.summary() == (
        "4 of 7 steps guided; first pass in 2.0 s, Hires. fix in 2.5 s; stopped in Hires. fix"
    )


def test_without_guidance_the_steps_alone_are_named() -> None:
    record = RunRecord(clock_of(0, 1))
    with record.taking("text", (64, 64)) as part:
        sample(part, steps=2, guided=0)
    assert record.summary() == "2 steps; first pass in 1.0 s"


def test_no_pass_gives_no_message() -> None:
    record = RunRecord(clock_of())
    assert (record.summary(), record.lines()) == ("", [])


@pytest.mark.parametrize(("earlier", "now", "known"), [(None, None, None), (5, 5, None), (5, 7, 7)])
def test_a_peak_that_an_earlier_run_may_have_made_is_unknown(
    earlier: int | None, now: int | None, known: int | None
) -> None:
    peaks = iter([earlier, now])
    record = RunRecord(clock_of(0, 1), lambda: next(peaks))
    assert record.peak_memory is None
    with record.taking("text", (64, 64)):
        pass
    assert record.peak_memory == known


def test_the_memory_of_the_processor_is_unknown() -> None:
    reset_allocated_peak(torch.device("cpu"))
    assert allocated_peak(torch.device("cpu")) is None


def test_it_can_be_copied_into_another_process() -> None:
    record = RunRecord(time.perf_counter, partial(allocated_peak, torch.device("cpu")))
    with record.taking("text", (64, 64)) as part:
        sample(part, steps=2, guided=1)
    assert pickle.loads(pickle.dumps(record)).lines() == record.lines()
