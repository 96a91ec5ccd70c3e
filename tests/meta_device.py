"""The meta device, whose tensors have no values that a step could wait for."""

from __future__ import annotations

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class OnDevice(TorchDispatchMode):
    """Refuses whatever makes a tensor on the CPU"""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            assert not isinstance(tensor, Tensor) or tensor.is_meta, function
        return made
