"""What devices differ in: the words for memory that ran out, autocast, and the peak of memory."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import torch

SENTENCES = re.compile(
    "out of memory"  # CUDA, ROCm, Intel's and Apple's devices
    "|Invalid buffer size"  # Apple's, more than a buffer may have
    "|can't allocate memory"  # the CPU
    "|DefaultCPUAllocator: not enough memory"  # the CPU on Windows
    "|not enough GPU video memory"  # DirectML
    "|can NOT allocate memory block",  # Intel's, more than a block may have
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` was raised because a device or the CPU had too little memory."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and SENTENCES.search(str(error)) is not None


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A block in which products of float32 on `device` are not rounded by a host's autocast.

    Where none is on, nothing is asked of torch, which refuses the kinds of device that it has no
    autocast for: before 2.5 Apple's.
    """
    kind = device.type
    return torch.autocast(kind, enabled=False) if _autocasts(kind) else nullcontext()


def _autocasts(kind: str) -> bool:
    """Whether autocast is on for a kind of device."""
    if hasattr(torch.amp, "is_autocast_available"):  # from 2.4 on
        return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    on = {"cuda": torch.is_autocast_enabled, "cpu": torch.is_autocast_cpu_enabled}
    return kind in on and on[kind]()


def held_at_most(device: torch.device) -> int | None:
    """The bytes that torch has held at most on a device; None where it does not count them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def forget_peak(device: torch.device) -> None:
    """Let `held_at_most` begin anew; only for who has the device alone."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
