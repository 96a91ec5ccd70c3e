"""The nodes in a real ComfyUI with its other kinds of models, and with what other nodes patch."""

import pytest
import torch
from comfyui_process import NEEDED, checked

pytestmark = NEEDED
ROUNDING = 2e-5  # of float32 over three steps, relative to the largest value


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What comfyui_models.py has seen in the host."""
    text = torch.randn(2, 1, 77, 192, generator=torch.Generator().manual_seed(0))
    tensors = {"cond": text[0], "uncond": text[1]}
    return checked("comfyui_models", tmp_path_factory.mktemp("comfyui"), tensors, {})


@pytest.mark.parametrize(
    "name", ["sdxl", "t2i_adapter", "transformers", "inpainting", "image_tokens", "custom_samplers"]
)
def test_the_coarse_image_is_the_native_samplers(seen, name):
    assert isinstance(seen[name], dict), seen[name]
    assert max(seen[name].values()) < ROUNDING, seen[name]


def test_a_video_is_left_as_it_is_with_a_message(seen):
    assert isinstance(seen["video"], dict), seen["video"]
    assert seen["video"]["untouched"] and seen["video"]["finite"]
    (line,) = seen["video"]["log"]
    assert "5 axes" in line


def test_the_node_gives_the_schedule_that_guidance_takes_by_itself(seen):
    assert seen["higher_start"] == {"ratio": pytest.approx(2), "same": True}


def test_out_of_memory_is_the_hosts(seen):
    """It decodes in tiles where the whole does not fit; its own error leaves a sampling."""
    whole = [1, 768, 768, 3]
    assert seen["out_of_memory"] == {"tiled": whole, "raised": "of the test", "after": whole}
