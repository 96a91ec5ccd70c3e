"""The nodes in a real ComfyUI beside what other nodes patch, and with its other samplers."""

import pytest
from comfyui_process import NEEDED, ROUNDING, assert_exact, checked_with_random_text

pytestmark = NEEDED


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What comfyui_others.py has seen in the host."""
    return checked_with_random_text("comfyui_others", tmp_path_factory.mktemp("comfyui"))


@pytest.mark.parametrize(
    "name",
    [
        "exact_with_controlnet",
        "exact_with_patches",
        "exact_with_other_sizes_of_features",
        "image_tokens",
        "custom_samplers",
    ],
)
def test_the_coarse_image_is_the_native_samplers(seen, name):
    assert_exact(seen, name)


def test_the_node_gives_the_schedule_that_guidance_takes_by_itself(seen):
    assert seen["higher_start"] == {"ratio": pytest.approx(2), "same": True}


def test_two_parts_of_the_steps_are_one_run_of_the_same_schedule(seen):
    """KSampler (Advanced) gives each part a schedule of its own where the start is higher."""
    parts = seen["parts_of_the_steps"]
    assert isinstance(parts, dict), parts
    assert max(parts["as it is"], parts["split"]) < ROUNDING < parts["stretched"], parts
