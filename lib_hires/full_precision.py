"""A block in which float32 is not made half precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


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
