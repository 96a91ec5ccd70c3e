"""The host's VAE and its precisions."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import pytest
import torch

REFINE = {"refine": True, "refine_eta2": "0.4"}


@pytest.fixture
def contexts(monkeypatch):
    """Names of the precision contexts of the host's that are open, the innermost last."""
    from modules import devices

    names = []

    @contextmanager
    def named(name, disable=False):
        names.append("" if disable else name)
        yield
        names.pop()

    for name in ("autocast", "without_autocast"):
        monkeypatch.setattr(devices, name, partial(named, name))
    return names


def test_what_a_host_encodes_in_tiles_is_taken_as_it_gives_it():
    """The moments overheard are those of tiles, here of halves."""
    from host import Host
    from modules import shared
    from modules.toy_model import ToySDXL

    from lib_hires.webui.refining.vae import HostVae

    class InTiles(ToySDXL):
        def encode_first_stage(self, images):
            halves = [super(InTiles, self).encode_first_stage(x) for x in images.chunk(2, dim=-1)]
            return torch.cat(halves, dim=-1)

    Host(model=InTiles)
    images, messages = torch.rand(1, 3, 64, 128) - 0.5, []
    model = shared.loaded.sd_model
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    encoded = HostVae(model, 0, messages.append).encode(images)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(encoded, model.encode_first_stage(images))
    assert messages == ["the WebUI encodes in tiles of its own, which adds a little noise."]


@pytest.mark.parametrize("dtype, context", [(torch.float32, ""), (torch.float64, "autocast")])
def test_a_vae_in_float32_is_not_rounded(host, contexts, monkeypatch, dtype, context):
    """As with --no-half-vae; others encode as the host does. float64 stands in for float16."""
    from modules import devices, shared

    from lib_hires.webui.refining.vae import HostVae

    monkeypatch.setattr(devices, "dtype_vae", dtype)
    model, seen = shared.loaded.sd_model, []
    model.first_stage_model.quant_conv.register_forward_hook(lambda *_: seen.append(contexts[-1]))
    HostVae(model, 0, print).encode(torch.zeros(1, 3, 64, 64))
    assert seen == [context]


def test_a_latent_comes_back_to_the_images_device(host, monkeypatch):
    """Where the VAE is on the CPU, as with Forge's --vae-in-cpu."""
    from modules import shared

    from lib_hires.webui.refining.vae import HostVae

    model = shared.loaded.sd_model
    encode = model.encode_first_stage
    monkeypatch.setattr(
        model, "encode_first_stage", lambda image: encode(torch.zeros(image.shape)), raising=False
    )
    monkeypatch.setattr(shared, "device", torch.device("meta"))
    assert HostVae(model, 0, print).encode(torch.zeros(1, 3, 64, 64)).is_meta


@pytest.mark.parametrize("upcast", [False, True])
def test_a_stages_prompts_are_encoded_and_sampled_in_the_hosts_precisions(
    contexts, monkeypatch, upcast
):
    """With --upcast-sampling the host leaves autocast for the sampling alone."""
    from host import Host
    from modules import devices
    from modules.toy_model import ToyModel

    prompts, calls = set(), set()

    class Listening(ToyModel):
        def encode_prompt(self, *received):
            prompts.update(contexts[-1:])
            return super().encode_prompt(*received)

        def evaluate(self, *received):
            calls.update(contexts[-1:])
            return super().evaluate(*received)

    monkeypatch.setattr(devices, "unet_needs_upcast", upcast)
    Host(model=Listening).generate(REFINE)
    assert prompts == {"autocast"}
    assert calls == {"without_autocast" if upcast else "autocast"}
