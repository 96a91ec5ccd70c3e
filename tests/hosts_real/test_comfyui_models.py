"""The nodes in a real ComfyUI with its other kinds of models, and with what other nodes patch."""

import pytest
from comfyui_process import NEEDED, assert_exact, checked_with_random_text

pytestmark = NEEDED


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What comfyui_models.py has seen in the host."""
    return checked_with_random_text("comfyui_models", tmp_path_factory.mktemp("comfyui"))


@pytest.mark.parametrize(
    "name",
    ["sd2", "sdxl", "t2i_adapter", "transformers", "inpainting"],
)
def test_the_coarse_image_is_the_native_samplers(seen, name):
    assert_exact(seen, name)


def test_stable_diffusion_2_is_found_by_its_weights(seen):
    expected = {"v": ["SD20", "V_PREDICTION", 768], "eps": ["SD20", "EPS", 512]}
    assert seen["sd2_as_it_is_found"] == expected


def test_a_video_is_left_as_it_is_with_a_message(seen):
    assert isinstance(seen["video"], dict), seen["video"]
    assert seen["video"]["untouched"] and seen["video"]["finite"]
    (line,) = seen["video"]["log"]
    assert "5 axes" in line


def test_out_of_memory_is_the_hosts(seen):
    """It decodes in tiles where the whole does not fit; its own error leaves a sampling."""
    whole = [1, 768, 768, 3]
    assert seen["out_of_memory"] == {"tiled": whole, "raised": "of the test", "after": whole}
