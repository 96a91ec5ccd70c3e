"""What the host's VAE encodes and decodes."""

from __future__ import annotations

import pytest
import torch
from runs import leftovers


@pytest.mark.parametrize("kind", ["ToyModel", "ToySDXL"])
def test_images_are_encoded_to_the_posteriors_mode(kind):
    from host import Host
    from modules import toy_model

    from lib_hires.webui.refining.vae import HostVae

    Host(model=getattr(toy_model, kind))
    from modules import shared

    model = shared.loaded.sd_model
    latent = torch.randn(2, 4, 8, 8) * 0.3
    images = torch.nn.functional.interpolate(
        model.decode_first_stage(latent)[..., ::8, ::8], scale_factor=8
    )
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    encoded = HostVae(model, 0, print).encode(images)
    assert torch.equal(before, torch.random.get_rng_state())
    posterior = model.first_stage_model.encode(images)
    assert torch.allclose(encoded, model.scale_factor * posterior._mean, atol=1e-6)
    assert leftovers() == 0


def test_what_a_host_decodes_in_tiles_is_taken_as_it_gives_it(host):
    from modules import shared

    from lib_hires.webui.refining.vae import HostVae

    class InTiles:
        def __init__(self, model):
            self.first_stage_model = model.first_stage_model
            self.scale_factor = model.scale_factor

        def decode_first_stage(self, z):
            halves = [
                shared.loaded.sd_model.decode_first_stage(part) for part in z.chunk(2, dim=-1)
            ]
            return torch.cat(halves, dim=-1)

    latent, model = torch.randn(1, 4, 8, 8), InTiles(shared.loaded.sd_model)
    assert torch.equal(HostVae(model, 0, print).decode(latent), model.decode_first_stage(latent))
