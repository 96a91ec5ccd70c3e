"""The host's patches of output blocks against the engine's hooks on the same U-Net."""

import logging
from contextlib import nullcontext

import folder_paths
import pytest
import torch
from toy_unets import ToyLdm, upsampled
from toy_upsamplers import info, trained

from lib_hires.comfy import features
from lib_hires.comfy.features import upsampled_model, with_small
from lib_hires.comfy.guidance import guided_model
from lib_hires.comfy.nodes import FEATURE_UPSAMPLER
from lib_hires.comfy.register import classic
from lib_hires.feature_upsampler import Upsampled, captured
from lib_hires.settings import SettingsError, UpsampleGuidance
from lib_hires.upsampler_file import write_upsampler

SIGMAS = torch.tensor([2.0, 0.8, 0.0])
LARGE, SMALL = 16, 8


class PatchedLdm(ToyLdm):
    """As the host's U-Net: patches receive h and the skip feature before a block takes them."""

    def forward(self, x, timesteps, state):
        kept = []
        for n, module in enumerate(self.input_blocks):
            x = module(x if n == 0 else x[..., ::2, ::2], timesteps)
            kept.append(x)
        x = self.middle_block(x, timesteps)
        for n, module in enumerate(self.output_blocks):
            skip = kept.pop()
            x = upsampled(x, skip.shape[-2:])
            for patch in state.get("patches", {}).get("output_block_patch", ()):
                x, skip = patch(x, skip, {**state, "block": ("output", n)})
            x = module(torch.cat([x, skip], dim=1), timesteps)
        return x


@pytest.fixture
def host(make_host):
    """One whose model is a U-Net that sees how strong a cond is."""
    host = make_host()
    model, unet = host.model.model, PatchedLdm()

    def predict(x, sigma, branch):
        seen = x * branch[0]["strength"] / (1 + sigma**2).sqrt()[:, None, None, None]
        t = model.model_sampling.timestep(sigma.clamp(min=1e-2)).float()
        return x - sigma[:, None, None, None] * unet(seen, t, model.state)

    model.net, model.diffusion_model = predict, unet.requires_grad_(False)
    return host


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The host's folder of feature upsamplers, with one in it."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    (tmp_path / features.FOLDER).mkdir()
    write_upsampler(tmp_path / features.FOLDER / "toy.safetensors", trained(), info())
    return tmp_path / features.FOLDER


def by_hooks(host, noise, small):
    """Each cond by itself with the engine's hooks; the branches' features are their own."""
    model, unet = host.model.model, host.model.model.diffusion_model
    clean, plain, scopes = model.process_latent_in(small), model.net, {}

    def predict(x, sigma, branch):
        strength = branch[0]["strength"]
        if strength not in scopes:
            with captured(unet, info().layers) as kept:
                plain(clean, torch.zeros(1), branch)
            scopes[strength] = Upsampled(unet, trained(), kept, (LARGE, LARGE))
        with scopes[strength] if x.shape[-1] == LARGE else nullcontext():
            return plain(x, sigma, branch)

    model.net, model.state = predict, {}
    try:
        return host.sample(host.model, SIGMAS, noise)
    finally:
        model.net = plain


def test_the_patches_do_what_the_hooks_do(host, folder):
    noise, small = host.noise(LARGE), host.noise(SMALL, seed=4)
    made = host.sample(upsampled_model(host.model, "toy", small), SIGMAS, noise)
    plain = host.sample(host.model, SIGMAS, noise)
    assert (made - plain).abs().max() > 1e-2
    torch.testing.assert_close(made, by_hooks(host, noise, small))
    assert torch.equal(host.sample(host.model, SIGMAS, noise), plain), "something stays behind"


def test_native_evaluations_get_no_features(host, folder):
    """Nothing is added to the native evaluation, so that the coarse image stays as it is."""
    settings = UpsampleGuidance(enabled=True, shifted_start=False)
    small, noise = host.noise(SMALL, seed=4), host.noise(LARGE)
    guided = guided_model(host.model, settings, host.native)
    both = host.sample(upsampled_model(guided, "toy", small), SIGMAS, noise)
    alone = host.sample(guided, SIGMAS, noise)
    assert (both - alone).abs().max() > 1e-2
    blocks = torch.nn.functional.avg_pool2d
    torch.testing.assert_close(blocks(both, 4), blocks(alone, 4), rtol=1e-4, atol=1e-4)


def test_a_refinement_gives_each_stage_its_own_latent(host, folder):
    small, noise = host.noise(SMALL, seed=4), host.noise(LARGE)
    without = upsampled_model(host.model, "toy", None)
    assert torch.equal(host.sample(without, SIGMAS, noise), host.sample(host.model, SIGMAS, noise))
    torch.testing.assert_close(
        host.sample(with_small(without, small), SIGMAS, noise), by_hooks(host, noise, small)
    )
    assert with_small(host.model, small) is host.model


def test_another_scale_is_left_alone_with_a_message(host, folder, caplog):
    model = upsampled_model(host.model, "toy", host.noise(4))
    noise = host.noise(LARGE)
    with caplog.at_level(logging.WARNING, logger="hires_guidance"):
        made = host.sample(model, SIGMAS, noise)
    assert torch.equal(made, host.sample(host.model, SIGMAS, noise))
    assert "trained for 2 times the sides" in caplog.text


def test_files_for_other_models_and_missing_ones_are_refused(host, folder):
    write_upsampler(folder / "xl.safetensors", trained(), info(family="sdxl"))
    with pytest.raises(SettingsError, match="was trained on toy"):
        upsampled_model(host.model, "xl", None)
    with pytest.raises(SettingsError, match="expected the name"):
        upsampled_model(host.model, "gone", None)


def test_the_widget_lists_the_folder_as_it_is_now(folder):
    def names():
        return classic(FEATURE_UPSAMPLER).INPUT_TYPES()["required"]["upsampler"][0]

    assert names() == ["toy"]
    write_upsampler(folder / "new.safetensors", trained(), info())
    assert names() == ["new", "toy"]
