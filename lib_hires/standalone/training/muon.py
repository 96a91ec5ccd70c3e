"""Muon (Jordan et al. 2024): momentum, each weight's matrix of it made orthogonal.

torch.optim.Muon, from torch 2.9 on, is the same for matrices and takes no convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lib_hires.standalone.models.precision import is_slow

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of x, x^3 and x^5 in the polynomial that takes singular values in (0, 1] near 1: Jordan's, steep
at zero and with no limit of its own."""

ITERATIONS = 5


def orthogonal(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Near U V^T of a matrix (m, n) = U S V^T, float32, by Newton-Schulz iterations in `dtype`.

    Singular values of at least 0.002 of the matrix's norm (Frobenius) become 0.68 to 1.21, smaller
    ones less; zeros stay zeros.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).float()


class Muon(Optimizer):
    """Muon with Nesterov's momentum, without weight decay, for weights of two axes or more.

    A convolution (outputs, inputs, height, width) is the matrix (outputs, inputs * height * width).
    An update has 0.2 `lr` as the root of its mean square, about Adam's, so that both take the same
    rates (Liu et al. 2025, arXiv 2502.16982). Weights without a gradient stay.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; in bfloat16, or in float32 on a CPU without units for it."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group["lr"], group["momentum"])

    def _update(self, weight: Tensor, lr: float, momentum: float) -> None:
        state, gradient = self.state[weight], weight.grad
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        matrix = gradient.lerp(mean, momentum).flatten(1)
        slow = is_slow(torch.bfloat16, weight.device)
        update = orthogonal(matrix, torch.float32 if slow else torch.bfloat16)
        update *= 0.2 * max(matrix.shape) ** 0.5
        weight.add_(update.reshape(weight.shape).to(weight.dtype), alpha=-lr)


def inner_and_other(
    module: nn.Module, ends: Sequence[str]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """A network's weights for Muon and those for another optimizer.

    The other ones are norms and biases, and the layers with a name of `ends` in theirs.
    """
    inner, other = [], []
    for name, weight in module.named_parameters():
        at_end = any(end in name for end in ends)
        (other if at_end or weight.dim() == 1 else inner).append(weight)
    return inner, other


class Optimizers:
    """Several optimizers as one, for `Loop`: their groups in order."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self._each = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for each in self._each for group in each.param_groups]

    def zero_grad(self) -> None:
        for each in self._each:
            each.zero_grad()

    def step(self) -> None:
        for each in self._each:
            each.step()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [each.state_dict() for each in self._each]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises KeyError and ValueError for the state of other optimizers."""
        for each, own in zip(self._each, state["optimizers"], strict=True):
            each.load_state_dict(own)
