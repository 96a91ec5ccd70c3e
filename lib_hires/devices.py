"""What devices differ in: their out-of-memory messages, autocast, and the peak of memory."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import torch

MESSAGES = re.compile(
    "out of memory"  # CUDA, ROCm, Intel's and Apple's devices
    "|Invalid buffer size"  # Apple's, above the limit of one buffer
    "|can't allocate memory"  # the CPU
    "|DefaultCPUAllocator: not enough memory"  # the CPU on Windows
    "|not enough GPU video memory"  # DirectML
    "|can NOT allocate memory block",  # Intel's, above the limit of one block
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` was raised because a device or the CPU had too little memory."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and MESSAGES.search(str(error)) is not None


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A block in which products of float32 on `device` are not rounded by a host's autocast.

    Where none is on, torch.autocast is not called, which raises for kinds of device that it does
    not know: before 2.5 Apple's.
    """
    kind = device.type
    return torch.autocast(kind, enabled=False) if _autocasts(kind) else nullcontext()


def _autocasts(kind: str) -> bool:
    """Whether autocast is on for a kind of device."""
    if hasattr(torch.amp, "is_autocast_available"):  # from 2.4 on
        return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    on = {"cuda": torch.is_autocast_enabled, "cpu": torch.is_autocast_cpu_enabled}
    return kind in on and on[kind]()


def allocated_peak(device: torch.device) -> int | None:
    """The peak of the bytes that torch has held on a device; None where it does not count them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def reset_allocated_peak(device: torch.device) -> None:
    """Reset the peak of `allocated_peak`; only for a caller that has the device to itself."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
