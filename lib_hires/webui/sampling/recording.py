"""What a run of the host's really did: counted on the way, told under its images at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from modules import shared

from lib_hires.devices import held_at_most
from lib_hires.run.passes import Kind
from lib_hires.run.record import PassRecord, RunRecord
from lib_hires.sizes import Size
from lib_hires.webui.patching import replaced

RECORD = "hires_guidance_record"  # on p
# How the lines begin, by which javascript/run_record.js finds them.
RAN, DETAIL = "HiRes Guidance ran: ", "· "


def begin_record(p: Any) -> None:
    """To be called as a run begins: X/Y/Z copies p, and what it refers to stays shared."""
    setattr(p, RECORD, _new_record())


def record_of(p: Any) -> RunRecord:
    """The record of run `p`."""
    record: RunRecord = vars(p).setdefault(RECORD, _new_record())
    return record


def _new_record() -> RunRecord:
    return RunRecord(time.perf_counter, partial(held_at_most, torch.device(shared.device)))


@contextmanager
def taking(p: Any, kind: Kind, size: Size, number: int = 0) -> Iterator[None]:
    """Time a pass of (height, width) pixels; the host ends an interrupted one without a word."""
    with record_of(p).taking(kind, size, number) as part:
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
        if sampler.config.name == "UniPC":  # it tells of a step after the next one's evaluation
            with denoiser.register_forward_hook(lambda *_: part.finish_step()):
                yield
        else:
            with replaced(sampler, "callback_state", after_step):
                yield


def show_record(p: Any, processed: Any) -> None:
    """Put what happened under the images, one line and its details, and nowhere else: the PNG
    info says what repeats an image."""
    record = record_of(p)
    if not record.passes:
        return
    lines = [RAN + record.summary(), *(DETAIL + line for line in record.lines())]
    processed.comments += "".join(f"{line}\n" for line in lines)
