"""How often a pass evaluates the model, against a walk through its evaluations one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_hires.run.evaluations import Evaluations, count_evaluations, native_steps
from lib_hires.run.schedules import Sampler


def walked(sampler: Sampler, weights: list[float], cadence: int) -> Evaluations:
    """Every evaluation in its order, each with a native one where the cadence wants one."""
    plain, native, last = 0, 0, -cadence
    for step, weight in enumerate(weights):
        first_and_last = step == 0, step == len(weights) - 1
        count = 1 if first_and_last[1] else sampler.evaluations
        count += sampler.opening if first_and_last[0] else 0
        for _ in range(count):
            plain += 1
            if weight > 0 and (step >= last + cadence or (cadence == 1 and last == step)):
                native, last = native + 1, step
    return Evaluations(plain + native, native)


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=12),
    st.integers(1, 5),
    st.builds(Sampler, evaluations=st.integers(1, 3), opening=st.integers(0, 1)),
)
def test_the_count_is_that_of_a_walk(weights: list[float], cadence: int, sampler: Sampler) -> None:
    native = native_steps(weights, cadence)
    assert count_evaluations(sampler, native, cadence) == walked(sampler, weights, cadence)


@pytest.mark.parametrize(
    ("weights", "cadence", "steps"),
    [
        ([1, 1, 1, 1], 1, [0, 1, 2, 3]),
        ([1, 1, 1, 1], 3, [0, 3]),
        ([0, 1, 1, 1, 0], 2, [1, 3]),
        ([0, 0], 2, []),
        ([], 1, []),
    ],
)
def test_native_evaluations_begin_with_the_guidance(weights, cadence, steps) -> None:
    chosen = native_steps(weights, cadence)
    assert len(chosen) == len(weights)
    assert [step for step, native in enumerate(chosen) if native] == steps
