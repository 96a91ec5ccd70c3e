from collections import Counter

import latent_preview
import nodes
import pytest
import torch
import torch.nn.functional as F

from lib_hires.comfy.guidance import guided_model
from lib_hires.comfy.nodes import progressive_refinement
from lib_hires.comfy.planning import planned
from lib_hires.settings import ProgressiveRefinement, Settings, UpsampleGuidance

RUN = {"seed": 5, "steps": 6, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}
RUN |= {"workflow": {"prompt": {"1": "of the page"}, "extra_pnginfo": None}}


class Vae:
    """Latents of 4 channels are images of 3, 8 times smaller."""

    def __init__(self):
        self.tiles = []

    def spacial_compression_decode(self):
        return 8

    def decode(self, latent):
        assert latent.ndim == 4
        image = F.interpolate(torch.tanh(latent[:, :3].float()), scale_factor=8)
        return (image / 2 + 0.5).movedim(1, -1)

    def encode(self, pixels):
        latent = F.avg_pool2d(pixels.movedim(-1, 1) * 2 - 1, 8)
        return torch.cat([latent, latent[:, :1]], dim=1)

    def decode_tiled(self, latent, tile_x, tile_y, overlap):
        self.tiles.append((tile_x, tile_y, overlap))
        return self.decode(latent)

    def encode_tiled(self, pixels, tile_x, tile_y, overlap):
        self.tiles.append((tile_x, tile_y, overlap))
        return self.encode(pixels)


class Interrupted(BaseException):
    """As the host's exception, which no `except Exception` may hold up."""


def refined(host, latent=None, vae=None, **settings):
    samples = host.noise(8) if latent is None else latent
    return progressive_refinement(
        host.model, host.positive, host.negative, vae or Vae(), {"samples": samples},
        **RUN, **settings,
    )  # fmt: skip


def test_each_stage_gives_an_image_and_the_bar_counts_all_steps(host):
    latent_preview.PROGRESS.clear()
    latent, images = refined(host, factor=4, eta2="0.3, 0.5")
    assert latent["samples"].shape == (1, 4, 32, 32)
    assert [tuple(image.shape) for image in images] == [(1, 192, 192, 3), (1, 256, 256, 3)]
    assert [(step, 5) for step in range(1, 6)] == latent_preview.PROGRESS  # 2 and 3 steps


@pytest.mark.parametrize(("steps", "strength"), [(10, "0.4"), (6, "0.5"), (14, "0.5")])
def test_a_stage_evaluates_the_native_size_as_often_as_planned(host, steps, strength):
    """With an automatic cadence, which the steps of the whole schedule decide."""
    model = guided_model(host.model, UpsampleGuidance(enabled=True), host.native)
    settings = ProgressiveRefinement(enabled=True, eta2=strength, steps=steps)
    run = {**RUN, "steps": steps, "scheduler": "karras", "eta2": strength}
    plan = planned(model, Settings(refine=settings), (32, 32), steps, "euler", "karras").plan
    host.model.model.calls.clear()
    progressive_refinement(
        model, host.positive, host.negative, Vae(), {"samples": host.noise(4)}, **run
    )
    sizes = Counter(shape[-1] for shape, _, _ in host.model.model.calls)
    (stage,) = plan.passes[1:]
    assert sizes == {8: len(stage.weights), 4: stage.native_evaluations}


def test_the_pivot_starts_at_its_timestep_in_a_larger_latent(host):
    refined(host, method="Pivot", pivot=700)
    shape, sigma, _ = host.model.model.calls[0]
    assert shape == (1, 4, 16, 16)
    assert sigma == pytest.approx(float(host.model.model.model_sampling.sigmas[700]), rel=1e-3)


def test_an_images_noise_does_not_depend_on_its_batch(host):
    both = torch.cat([host.noise(8), host.noise(8, seed=1)])
    together, _ = refined(host, both)
    alone, _ = refined(host, both[:1])
    torch.testing.assert_close(together["samples"][:1], alone["samples"])


def test_tiles_are_the_vaes_own(host):
    vae = Vae()
    refined(host, vae=vae, tile=256)
    assert vae.tiles == [(32, 32, 8), (256, 256, 64), (32, 32, 8)]


def test_an_interruption_is_the_hosts(host):
    def interrupted(x, sigma, branch):
        raise Interrupted

    host.model.model.net = interrupted
    with pytest.raises(Interrupted):
        refined(host)


def test_finished_stages_of_an_interrupted_run_are_in_the_output_folder(host, caplog):
    whole = host.model.model.net

    def interrupted(x, sigma, branch):
        if x.shape[-1] == 32:
            raise Interrupted
        return whole(x, sigma, branch)

    host.model.model.net = interrupted
    nodes.SAVED.clear()
    with pytest.raises(Interrupted):
        refined(host, factor=4, eta2="0.3, 0.3")
    ((kind, name, shape, prompt),) = nodes.SAVED
    assert (kind, shape, prompt) == ("output", (192, 192, 3), {"1": "of the page"})
    assert name in caplog.text


def test_a_finished_run_saves_nothing_by_itself(host):
    nodes.SAVED.clear()
    refined(host)
    assert nodes.SAVED == []


def test_a_stage_without_numbers_leaves_the_stage_before(host, caplog):
    whole = host.model.model.net

    def broken(x, sigma, branch):
        return whole(x, sigma, branch) * (float("nan") if x.shape[-1] == 32 else 1)

    host.model.model.net = broken
    latent, images = refined(host, factor=4, eta2="0.3, 0.3")
    assert len(images) == 1 and latent["samples"].shape[-1] == 24
    assert "not numbers" in caplog.text
    host.model.model.net = lambda *_: torch.tensor(float("nan"))
    with pytest.raises(FloatingPointError):
        refined(host)


def test_latents_of_videos_are_refused(host):
    with pytest.raises(ValueError, match="5 axes"):
        refined(host, torch.zeros(1, 4, 2, 8, 8))
