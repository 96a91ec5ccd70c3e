"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from lib_hires.devices import allocated_peak, reset_allocated_peak
from lib_hires.standalone.benchmarks.processes import in_fresh_process

_FORGET = Path("/proc/self/clear_refs")  # see proc(5): 5 lets VmHWM begin anew
_STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device, work: Callable[[], object]) -> int | None:
    """Bytes that `work` takes at its peak, beyond what is held before it.

    On CUDA those that torch allocates there, elsewhere the process's resident memory. Linux alone
    reports that: None on other systems, where `work` is not done. To be called in a fresh
    process, for memory that earlier work has left to be used again is not counted.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        reset_allocated_peak(device)
        work()
        return (allocated_peak(device) or 0) - before
    try:
        _FORGET.write_text("5")
    except OSError:
        return None
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def peak_alone(device: torch.device, measure: Callable[[], int | None]) -> int | None:
    """measure(), which calls `peak_memory` for `device`: for the CPU in a fresh process.

    It goes there by pickle.
    """
    return in_fresh_process(measure) if device.type == "cpu" else measure()


def _resident(name: str) -> int:
    """Bytes of a field of the process's status, which gives KiB."""
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(fields[name].split()[0]) * 1024
