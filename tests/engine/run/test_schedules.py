"""The schedules by the hosts' names."""

from __future__ import annotations

import pytest
import torch

from lib_hires.run.schedules import SCHEDULES, Model, Sampling, schedule_times, sigmas_of


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 20, 150])
def test_schedules_fall_from_the_largest_sigma_to_their_end(name: str, steps: int) -> None:
    abar = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2).cumprod(0)
    model = Model(sigmas_of(abar), (512, 512))
    times = schedule_times(Sampling((512, 512), steps, schedule=name), model)
    if name != "DDIM":  # which counts from below
        assert times[0] == pytest.approx(model.sigmas[-1])
    assert all(later < earlier for earlier, later in zip(times, times[1:], strict=False))
    assert times[-1] == (pytest.approx(model.sigmas[0]) if name == "KL Optimal" else 0)
