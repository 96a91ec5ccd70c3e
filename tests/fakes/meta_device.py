"""The meta device, whose tensors have no values that a step could wait for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class OnDevice(TorchDispatchMode):
    """Refuses whatever makes a tensor on the CPU, or in float64, which Apple's devices have not."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                assert tensor.is_meta and tensor.dtype != torch.float64, function
        return made
