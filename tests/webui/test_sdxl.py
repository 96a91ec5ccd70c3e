"""SDXL in the fake host: the sizes that it receives."""

from __future__ import annotations

import pytest
import torch
from runs import same

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
REFINE = {"refine": True, "refine_eta2": "0.4"}


@pytest.fixture
def sdxl():
    from host import Host
    from modules import scripts, shared
    from modules.toy_model import ToySDXL

    host = Host(model=ToySDXL)
    shared.opts.hires_guidance_native_size = 64
    yield host
    assert scripts.errors == []


def test_sdxl_receives_the_size_of_each_evaluation(sdxl):
    """The vector that the host makes for a size, in the native evaluation and in every stage."""
    from modules import shared

    model = shared.loaded.sd_model

    def expected(width, height):
        return model.encode_prompt("blue", (height, width))["vector"]

    model.received.clear()
    assert sdxl.generate(UG | REFINE, width=192).messages == []
    sizes = {
        size: received for (size, _), received in zip(model.evaluated, model.received, strict=True)
    }
    assert set(sizes) == {(16, 24), (32, 48), (8, 10)}
    for (height, width), received in sizes.items():
        assert torch.equal(received, expected(width * 8, height * 8))
    plain = sdxl.generate()
    assert same(plain, sdxl.generate(UG | {"ug_theta": 0}))


@pytest.mark.parametrize("batch_cond_uncond", [True, False])
def test_sdxls_sizes_are_embedded_once_a_sampling(sdxl, batch_cond_uncond):
    """The original and the target size of the small image, whatever the number of steps."""
    from modules import shared

    shared.opts.batch_cond_uncond = batch_cond_uncond
    embedded = []
    for embedder in shared.loaded.sd_model.embedders():
        embedder.register_forward_hook(lambda embedder, *_: embedded.append(embedder.input_key))
    sdxl.generate()
    by_the_host = len(embedded)
    embedded.clear()
    assert sdxl.generate(UG, steps=7).messages == []
    assert embedded[by_the_host:] == ["target_size_as_tuple", "original_size_as_tuple"]
