"""What Upsample Guidance leaves to the device: precision, layout, compiler, no waiting."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from guided_toys import TABLE, guided, noise, wide
from meta_device import OnDevice

from lib_hires.noise import Flow, VarianceExploding, VariancePreserving


@pytest.mark.parametrize("windows", ["off", "Hann"])
@pytest.mark.parametrize(
    ("family", "prediction"),
    [
        (VarianceExploding(TABLE.to("meta")), "denoised"),
        (VariancePreserving(torch.linspace(0.999, 0.01, 1000)), "eps"),
        (Flow(), "velocity"),
    ],
)
def test_a_step_reads_nothing_and_makes_nothing_on_the_cpu(family, prediction, windows) -> None:
    model = guided(
        lambda x, t, context: x * t[:, None, None, None],
        (16, 16),
        (8, 8),
        family=family,
        prediction=prediction,
        windows=windows,
        shifted_start=True,
        device="meta",
    )
    x, t = torch.empty(2, 4, 16, 16, device="meta"), torch.empty(2, device="meta")
    context = torch.empty(2, 7, 8, device="meta")
    model(x, t, context=context)  # brings its tables to the device
    with OnDevice():
        assert model(x, t, context=context).shape == x.shape


def test_reading_the_time_would_be_noticed() -> None:
    model = guided(
        lambda x, t: x,
        (16, 16),
        (8, 8),
        family=Flow(),
        prediction="velocity",
        eta=0.5,
        device="meta",
    )
    with pytest.raises(RuntimeError, match="meta"):
        model(torch.empty(1, 4, 16, 16, device="meta"), torch.empty(1, device="meta"))


def a_model(layouts=None):
    """A convolution that notes in `layouts` whether its input was in channels-last."""
    weight = noise(4, 4, 3, 3, seed=7).to(memory_format=torch.channels_last) / 6

    def predict(x, t):
        if layouts is not None:
            layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        return F.conv2d(x, weight, padding=1) / (1 + wide(t) ** 2)

    return predict


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_both_calls_have_the_layout_of_the_state(layout):
    layouts = []
    x = noise(2, 4, 16, 16).contiguous(memory_format=layout)
    made = guided(a_model(layouts), (16, 16), (8, 8))(x, torch.full((2,), 5.0))
    assert layouts == [layout == torch.channels_last] * 2
    torch.testing.assert_close(
        made, guided(a_model(), (16, 16), (8, 8))(noise(2, 4, 16, 16), torch.full((2,), 5.0))
    )


def test_under_autocast_the_model_alone_is_rounded():
    """A model that predicts the same under it gets its guidance to the bit."""

    def exact(x, t):
        with torch.autocast("cpu", enabled=False):
            return a_model()(x, t)

    ug, x, t = guided(exact, (16, 16), (8, 8)), noise(2, 4, 16, 16), torch.full((2,), 5.0)
    plain = ug(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ug(x, t), plain)


def test_a_compiled_model_is_guided_as_the_model():
    """Without code for the machine, which wants a compiler: what PyTorch makes of the calls."""
    x, t = noise(2, 4, 16, 16), torch.full((2,), 5.0)
    compiled = torch.compile(a_model(), backend="eager")
    made = guided(compiled, (16, 16), (8, 8))(x, t)
    assert torch.equal(made, guided(a_model(), (16, 16), (8, 8))(x, t))
