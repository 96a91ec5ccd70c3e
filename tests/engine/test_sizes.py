import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_hires.refinement import plan
from lib_hires.settings import ProgressiveRefinement
from lib_hires.sizes import native_size, size_of_area, small_size, snap


@pytest.mark.parametrize(
    ("length", "multiple", "expected"),
    [(1, 8, 8), (11, 8, 8), (12, 8, 16), (13, 8, 16), (64, 8, 64), (0.2, 1, 1), (95, 64, 64)],
)
def test_snap(length, multiple, expected):
    assert snap(length, multiple) == expected


@given(st.floats(0.1, 1e5), st.integers(1, 128))
def test_snap_is_the_nearest_positive_multiple(length, multiple):
    snapped = snap(length, multiple)
    assert snapped > 0 and snapped % multiple == 0
    if length >= multiple / 2:
        assert abs(snapped - length) <= multiple / 2


@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(8, 128), st.integers(8, 128))
def test_native_size_is_algorithm_1(height, width, native_height, native_width):
    ratio = height / width  # line 5
    rows = math.sqrt(native_height * native_width * ratio)  # line 6
    columns = math.sqrt(native_height * native_width / ratio)  # line 7
    got = native_size((height, width), (native_height, native_width))
    for exact, whole in zip((rows, columns), got, strict=True):
        # ceil, but 64.0000000001 is 64: rounding noise must not add a row
        assert whole in {math.ceil(exact), math.ceil(exact - 1e-6)} or (exact < 1e-6 and whole == 1)


@pytest.mark.parametrize(
    ("target", "native", "expected"),
    [
        ((512, 512), (256, 256), (256, 256)),
        ((2048, 1024), (512, 512), (725, 363)),  # 512·sqrt(2) = 724.08, 512/sqrt(2) = 362.04
        ((1080, 1920), (1024, 1024), (768, 1366)),  # 768 exactly, 1365.33
        ((3, 4), (32, 32), (28, 37)),  # 27.7, 36.95
    ],
)
def test_native_sizes_by_hand(target, native, expected):
    assert native_size(target, native) == expected


def test_native_size_is_snapped_to_what_the_model_takes():
    assert native_size((2048, 1024), (512, 512), 64) == (704, 384)  # of 725, 363
    assert native_size((1, 1000), (256, 256), 64)[0] == 64


def test_size_of_area_ignores_rounding_noise():
    # sqrt(0.1·0.1·1e4)·... : aspect 1/3 of 48 is 4 by 12 whatever the last bit says
    assert size_of_area(48, 1 / 3) == (4, 12)
    assert size_of_area(48, 3) == (12, 4)


def by_hand(first, target, count):
    """Algorithm 1, lines 10 to 12, without line 11's ceil on lines 12's last entry."""
    ratio = target[0] / target[1]
    areas = np.linspace(first[0] * first[1], target[0] * target[1], count + 1)
    return [(math.sqrt(area * ratio), math.sqrt(area / ratio)) for area in areas[1:]]


@pytest.mark.parametrize("eta2", ["0.2", "0.1, 0.2", "0.1, 0.2, 0.3", [0.2] * 5])
@pytest.mark.parametrize(
    ("first", "factor"),
    [((256, 256), 2), ((256, 256), 4), ((320, 192), 2), ((192, 320), 4), ((512, 768), 1.5)],
)
@pytest.mark.parametrize("multiple", [8, 64])
def test_ap_ldm_stage_sizes_by_hand(eta2, first, factor, multiple):
    settings = ProgressiveRefinement(factor=factor, eta2=eta2)
    stages = plan(settings, first, multiple=multiple, factor=8)
    target = int(first[0] * factor), int(first[1] * factor)
    assert stages[-1].size == target, "the last stage is exactly the target"
    exact = by_hand(first, target, len(settings.eta2))
    assert len(stages) == len(exact)
    for stage, (height, width) in zip(stages[:-1], exact[:-1], strict=True):
        rows, columns = (math.ceil(side - 1e-6) for side in (height, width))
        assert stage.size == (
            int(rows / multiple + 0.5) * multiple,
            int(columns / multiple + 0.5) * multiple,
        )


def test_target_is_not_rounded_to_the_multiple_of_the_stages_between():
    settings = ProgressiveRefinement(width=600, height=408, eta2="0.1, 0.2")
    stages = plan(settings, (256, 384), multiple=64, factor=8)
    assert stages[-1].size == (408, 600)
    assert all(side % 64 == 0 for side in stages[0].size)


@pytest.mark.parametrize(
    ("large", "native", "scale", "expected"),
    [
        ((64, 64), (32, 32), 0, (32, 32)),
        ((64, 128), (32, 32), 0, (23, 46)),  # 22.6, 45.3
        ((64, 64), (32, 32), 4, (16, 16)),
        ((64, 64), (32, 32), 1.5, (43, 43)),
        ((32, 32), (32, 32), 0, None),
        ((16, 32), (32, 32), 2, None),
        ((64, 64), (32, 32), 1, None),
    ],
)
def test_small_size(large, native, scale, expected):
    assert small_size(large, native, scale) == expected


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 64), st.integers(1, 64)),
    st.sampled_from([0, 1, 1.5, 2, 4, 16]),
    st.sampled_from([1, 2, 8]),
)
def test_small_size_never_exceeds_the_large(large, native, scale, multiple):
    small = small_size(large, native, scale, multiple)
    if small is not None:
        assert 0 < small[0] <= large[0] and 0 < small[1] <= large[1]
        assert math.prod(small) < math.prod(large)
        assert math.prod(large) > math.prod(native)
