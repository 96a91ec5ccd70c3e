"""What a run of the host's really did: counted on the way, shown under its images at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from modules import shared

from lib_hires.devices import allocated_peak
from lib_hires.run.passes import Kind
from lib_hires.run.record import PassRecord, RunRecord
from lib_hires.sizes import Size
from lib_hires.webui.patching import replaced

# How the lines begin, by which javascript/run_record.js finds them.
RAN, DETAIL = "HiRes Guidance ran: ", "· "


def new_record() -> RunRecord:
    """For a run that begins, on the host's device."""
    return RunRecord(time.perf_counter, partial(allocated_peak, torch.device(shared.device)))


@contextmanager
def taking(record: RunRecord, kind: Kind, size: Size, number: int = 0) -> Iterator[None]:
    """Time a pass of (height, width) pixels; the host ends an interrupted one without a word."""
    with record.taking(kind, size, number) as part:
        yield
    part.finished = not (shared.state.interrupted or shared.state.skipped)


@contextmanager
def counting(sampler: Any, part: PassRecord) -> Iterator[None]:
    """Count the evaluations and steps of everything that `sampler` samples inside the block."""
    denoiser = sampler.model_wrap_cfg

    def after_step(step: dict[str, Any]) -> None:
        part.finish_step()
        callback(step)

    callback = sampler.callback_state
    with denoiser.register_forward_pre_hook(lambda *_: part.begin_evaluation()):
        if sampler.config.name == "UniPC":  # it calls back after the next step's evaluation
            with denoiser.register_forward_hook(lambda *_: part.finish_step()):
                yield
        else:
            with replaced(sampler, "callback_state", after_step):
                yield


def show_record(record: RunRecord, processed: Any) -> None:
    """Put what happened under the images, one line and its details, and nowhere else: the PNG
    info has what repeats an image."""
    if not record.passes:
        return
    lines = [RAN + record.summary(), *(DETAIL + line for line in record.lines())]
    processed.comments += "".join(f"{line}\n" for line in lines)
