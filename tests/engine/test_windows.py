"""Evaluation in windows: where they lie, how they are blended, what conditioning each receives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lib_hires.noise import VarianceExploding
from lib_hires.resample import Reduction
from lib_hires.settings import UpsampleGuidance
from lib_hires.upsample_guidance import UpsampleGuided
from lib_hires.windows import AT_ONCE, Windowed, blending, corners


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mean_of(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
    """A model whose attention sees all that it is shown."""
    return x - t[:, None, None, None] * x.mean((2, 3), keepdim=True)


def windowed(predict, window=(8, 8), overlap=0.5, blend="Hann", **options) -> Windowed:
    return Windowed(predict, window=window, overlap=overlap, blend=blend, **options)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize(("size", "window"), [((16, 16), (8, 8)), ((21, 50), (8, 12))])
def test_windows_cover_the_image_and_overlap_enough(size, window, overlap) -> None:
    seen = torch.zeros(size)
    found = corners(size, window, overlap)
    for top, left in found:
        part = seen[top : top + window[0], left : left + window[1]]
        assert part.shape == window
        part += 1
    assert seen.min() > 0
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in found})
        assert starts[0] == 0
        assert starts[-1] == size[axis] - window[axis]
        stride = max(1, math.floor(window[axis] * (1 - overlap)))
        gaps = [after - before for before, after in zip(starts, starts[1:], strict=False)]
        assert max(gaps) <= stride
        assert max(gaps) - min(gaps) <= 1
        assert len(gaps) == math.ceil((size[axis] - window[axis]) / stride)


def test_weights_are_those_of_hann_and_never_nothing() -> None:
    weights = blending((4, 8), "Hann")
    rows, columns = (
        0.5 - 0.5 * torch.cos(2 * math.pi * (torch.arange(n) + 0.5) / n) for n in (4, 8)
    )
    assert torch.allclose(weights, torch.outer(rows, columns))
    assert weights.min() > 0
    assert torch.equal(blending((4, 8), "average"), torch.ones(4, 8))


@pytest.mark.parametrize("blend", ["Hann", "average"])
def test_a_model_that_sees_single_positions_predicts_as_at_full_size(blend: str) -> None:
    x, t = noise(2, 4, 21, 34), torch.tensor([0.5, 2.0])
    predict = lambda x, t: (x * t[:, None, None, None]).sin()  # noqa: E731
    assert torch.allclose(windowed(predict, blend=blend)(x, t), predict(x, t), atol=1e-6)


@pytest.mark.parametrize("blend", ["Hann", "average"])
def test_each_place_is_the_weighted_mean_of_the_windows_that_see_it(blend: str) -> None:
    x, t = noise(2, 3, 12, 14), torch.tensor([0.5, 2.0])
    prediction = windowed(mean_of, (8, 6), 0.5, blend)(x, t)
    weights, tops, lefts = blending((8, 6), blend).double(), (0, 4), (0, 3, 5, 8)
    for image, row, column in ((0, 0, 0), (0, 6, 5), (1, 7, 13), (1, 11, 8)):
        above = below = 0.0
        for top in tops:
            for left in lefts:
                if 0 <= row - top < 8 and 0 <= column - left < 6:
                    seen = x[image, 1, top : top + 8, left : left + 6].double()
                    weight = weights[row - top, column - left]
                    value = x[image, 1, row, column] - t[image] * seen.mean()
                    above, below = above + weight * value, below + weight
        assert torch.allclose(prediction[image, 1, row, column].double(), above / below, atol=1e-5)


def test_an_image_of_a_batch_is_the_one_made_alone() -> None:
    x, t = noise(3, 4, 16, 24), torch.tensor([0.5, 2.0, 1.0])
    together = windowed(mean_of)(x, t)
    for image in range(3):
        alone = windowed(mean_of)(x[image : image + 1], t[image : image + 1])
        assert torch.equal(together[image : image + 1], alone)


def test_an_image_of_the_windows_size_is_evaluated_at_full_size() -> None:
    x, received = noise(2, 4, 8, 8), {}

    def predict(whole: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        assert whole is x
        received.update(cond)
        return mean_of(whole, t)

    hint = noise(2, 3, 8, 8)
    assert torch.equal(windowed(predict)(x, torch.ones(2), hint=hint), mean_of(x, torch.ones(2)))
    assert received["hint"] is hint


def test_conditioning_is_cropped_and_repeated_with_the_windows() -> None:
    x, t = noise(2, 4, 16, 16), torch.ones(2)
    table, context = noise(5), noise(2, 7, 3, seed=1)
    # The hint of every position is the noise there, and each image has its text.
    cond = {"c_concat": [x.clone()], "c_crossattn": (context,), "scale": 3, "table": table}
    rows = []

    def predict(parts: Tensor, t: Tensor, *, cond: dict) -> Tensor:
        assert torch.equal(cond["c_concat"][0], parts)
        assert torch.equal(cond["c_crossattn"][0], context.repeat(len(parts) // 2, 1, 1))
        assert cond["scale"] == 3
        assert cond["table"] is table
        assert t.shape == (len(parts),)
        rows.append(len(parts))
        return parts

    assert torch.allclose(windowed(predict)(x, t, cond=cond), x)
    assert sum(rows) == 2 * 9
    assert max(rows) == 2 * AT_ONCE


def test_conditioning_that_is_more_than_a_image_is_fitted_to_the_window() -> None:
    def with_the_size(cond, size):
        return {**cond, "received": torch.full((len(cond["received"]), 2), float(size[0]))}

    def predict(parts: Tensor, t: Tensor, *, received: Tensor) -> Tensor:
        assert torch.equal(received, torch.full((len(parts), 2), 8.0))
        return parts

    x, received = noise(1, 4, 16, 16), torch.zeros(1, 2)
    windowed(predict, fit_cond=with_the_size)(x, torch.ones(1), received=received)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("There is not enough GPU video memory available!"),
    ],
)
def test_fewer_windows_are_evaluated_at_once_where_memory_ends(error: RuntimeError) -> None:
    batches = []

    def predict(parts: Tensor, t: Tensor) -> Tensor:
        batches.append(len(parts))
        if len(parts) > 1:
            raise error
        return mean_of(parts, t)

    x, t = noise(1, 4, 16, 16), torch.ones(1)
    model = windowed(predict)
    assert torch.equal(model(x, t), windowed(mean_of)(x, t))
    assert batches[:3] == [4, 2, 1]
    batches.clear()
    model(x, t)
    assert batches == [1] * 9  # it is remembered


@pytest.mark.parametrize("message", ["out of memory", "another error"])
def test_other_errors_and_a_window_too_large_for_memory_are_raised(message: str) -> None:
    batches = []

    def predict(parts: Tensor, t: Tensor) -> Tensor:
        batches.append(len(parts))
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=message):
        windowed(predict)(noise(1, 4, 16, 16), torch.ones(1))
    assert batches == ([4, 2, 1] if message == "out of memory" else [4])


@pytest.mark.parametrize("blend", ["Hann", "average"])
def test_the_native_evaluation_has_no_windows(blend: str) -> None:
    """And at theta = 1 the coarse part is the native prediction, as without windows."""
    reduction, sizes = Reduction.between((16, 24), (8, 12)), []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        sizes.append(tuple(x.shape))
        return mean_of(x, t)

    model = UpsampleGuided(
        predict,
        UpsampleGuidance(enabled=True, eta=1, windows=blend, shifted_start=False),
        family=VarianceExploding(torch.logspace(-2, 2, 1000)),
        reduction=reduction,
        times=[10.0, 1.0, 0.0],
    )
    x, t = noise(1, 4, 16, 24), torch.tensor([4.0])
    denoised = model(x, t)
    assert {size[2:] for size in sizes} == {(8, 12)}
    assert sizes[-1][0] == 1
    small = mean_of(reduction.reduce(x), t / 2)
    assert torch.allclose(reduction.reduce(denoised), small, atol=1e-5)
    large = windowed(mean_of, (8, 12), 0.5, blend)(x, t)
    change = reduction.upsample(small - reduction.reduce(large))
    assert torch.allclose(denoised, large + change, atol=1e-5)
