"""Whether an error says that memory ran out, which each kind of device has its own words for."""

from __future__ import annotations

import re

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
