"""Muon: its matrices beside an SVD, its steps beside torch's own, and resuming to the last bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib_hires.standalone.training.loop import Loop, Pace, descending
from lib_hires.standalone.training.muon import Muon, Optimizers, inner_and_other, orthogonal

ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # of results near 1, after five iterations


def matrix(rows: int, columns: int, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A random matrix of these singular values, and its factors U and V^T."""
    torch.manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    return u @ torch.diag(values) @ vt, u, vt


def of_values(values: Tensor) -> Tensor:
    """What five iterations make of singular values, in float64."""
    x = values.double() / values.double().norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return x


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("rows", "columns"), [(12, 40), (40, 12), (16, 16)])
def test_singular_values_come_near_one_and_their_vectors_stay(rows, columns, dtype) -> None:
    values = torch.logspace(0, -2, min(rows, columns)) * 7
    given, u, vt = matrix(rows, columns, values)
    inside = u.T @ orthogonal(given, dtype) @ vt.T  # diagonal where the vectors are the SVD's
    expected = of_values(values)
    assert ((expected > 0.68) & (expected < 1.21)).all()
    torch.testing.assert_close(
        inside, torch.diag(expected).float(), atol=ROUNDING[dtype], rtol=0
    )  # of U V^T itself: ones


def test_the_gradients_size_does_not_matter_and_zeros_stay() -> None:
    given, *_ = matrix(8, 20, torch.linspace(1, 2, 8))
    torch.testing.assert_close(orthogonal(1e-3 * given), orthogonal(given), atol=1e-3, rtol=0)
    assert not orthogonal(torch.zeros(3, 4)).any()


def test_an_update_is_as_large_as_adams_whatever_the_shape() -> None:
    """0.2 lr as the root of the mean square, as far as singular values are 1; zeros elsewhere."""
    torch.manual_seed(0)
    for shape in ((16, 8, 3, 3), (64, 2, 1, 1), (24, 24)):
        weight, still = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.ones(shape))
        weight.grad = 1e3 * torch.randn(shape)
        Muon([weight, still], lr=0.5).step()
        assert 0.68 < weight.detach().square().mean().sqrt() / (0.2 * 0.5) < 1.21
        assert (still == 1).all()  # it has no gradient


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon: from torch 2.9 on")
@pytest.mark.parametrize("shape", [(12, 5, 3, 3), (30, 10)])
def test_steps_are_those_of_torchs_muon_on_the_flattened_weight(shape) -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.zeros(shape))
    theirs = nn.Parameter(torch.zeros(shape).flatten(1))
    optimizers = [
        Muon([ours], lr=0.1),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.flatten(1)
        for each in optimizers:
            each.step()
    error = (ours.detach().flatten(1) - theirs.detach()).norm() / theirs.detach().norm()
    assert error < 0.03  # torch's rounds other intermediate values to bfloat16


class Toy:
    """A convolution by Muon and its bias by Adam, in a loop of so many steps."""

    def __init__(self, path, steps: int) -> None:
        torch.manual_seed(0)
        self.part = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        first = torch.optim.Adam([self.part.bias], lr=1e-2, fused=True)
        self.optimizer = Optimizers(first, Muon([self.part.weight], lr=1e-2))
        self.loop = Loop(
            "toy",
            path,
            pace=Pace(steps=steps),
            parts={"part": self.part},
            optimizer=self.optimizer,
            compute=descending(self.loss),
            rate_at=lambda _: (1.0, 0.5),
        )

    def loss(self, progress) -> Tensor:
        images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(progress.step))
        return F.mse_loss(self.part(images), images[:, :1, 1:-1, 1:-1].expand(-1, 5, -1, -1))


def test_a_resumed_run_is_one_without_a_stop_to_the_last_bit(tmp_path) -> None:
    whole = Toy(tmp_path / "whole.pt", 5)
    whole.loop.run()
    before = copy.deepcopy(Toy(tmp_path / "parts.pt", 3).part)
    Toy(tmp_path / "parts.pt", 3).loop.run()
    resumed = Toy(tmp_path / "parts.pt", 5)
    resumed.loop.run()
    for name, weight in resumed.part.named_parameters():
        assert torch.equal(weight, whole.part.get_parameter(name))
        assert not torch.equal(weight, before.get_parameter(name))
    mean, other = (each.optimizer._each[1].state for each in (resumed, whole))
    assert torch.equal(*(state[key]["momentum_buffer"] for state in (mean, other) for key in state))


def test_groups_stand_in_order_and_another_optimizers_state_is_refused(tmp_path) -> None:
    toy = Toy(tmp_path / "toy.pt", 1)
    toy.loop.run()
    assert [group["lr"] for group in toy.optimizer.param_groups] == [1e-2, 5e-3]
    adam = torch.optim.Adam(toy.part.parameters())
    with pytest.raises(KeyError):
        toy.optimizer.load_state_dict(adam.state_dict())
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        toy.optimizer.load_state_dict({"optimizers": []})


def test_a_network_s_ends_norms_and_biases_are_for_another_optimizer():
    unet = nn.ModuleDict(
        {
            "conv_in": nn.Conv2d(4, 8, 3),
            "resnets": nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3), nn.Linear(8, 8)),
            "conv_out": nn.Conv2d(8, 4, 3),
        }
    )
    inner, other = inner_and_other(unet, ("conv_in", "conv_out"))
    resnets = unet["resnets"]
    assert [id(each) for each in inner] == [id(resnets[1].weight), id(resnets[2].weight)]
    assert {id(each) for each in inner + other} == {id(each) for each in unet.parameters()}
    assert len(inner + other) == len(list(unet.parameters()))
