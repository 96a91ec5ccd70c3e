"""A small ComfyUI in the place of the real one, for tests of lib_hires/comfy."""

import sys
from pathlib import Path

import pytest
import torch

FAKE = Path(__file__).parents[1] / "fakes" / "comfyui"
sys.path.insert(0, str(FAKE))

import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.model_sampling  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402

TEXT = torch.zeros(1, 1, 1)


class Host:
    """The fake's model and sampling, small: native 32 pixels, 8 to a position of the latent."""

    native = 32
    positive, negative = [[TEXT, {"strength": 1.0}]], [[TEXT, {"strength": 0.3}]]

    def __init__(self, net, kind=comfy.model_base.BaseModel, sampling=None):
        """net: denoise(x, sigma) of 4 channels."""

        def predict(x, sigma, branch):
            return sum(cond["strength"] for cond in branch) * net(x, sigma)

        sampling = sampling or comfy.model_sampling.DiscreteEPS()
        self.model = comfy.model_patcher.ModelPatcher(kind(predict, sampling))

    def noise(self, side, seed=0):
        return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))

    def sample(self, model, sigmas, noise, name="euler", positive=None, sampler=None):
        return comfy.sample.sample_custom(
            model,
            noise,
            3.0,
            sampler or comfy.samplers.sampler_object(name),
            sigmas,
            positive or self.positive,
            self.negative,
            torch.zeros_like(noise),
        )


@pytest.fixture
def make_host(toy_net):
    net = type(toy_net)(channels=4)

    def denoise(x, sigma):
        scale = (1 + sigma**2).rsqrt()[:, None, None, None]
        return net(x * scale, sigma.log() / 4)

    def make(**options):
        return Host(denoise, **options)

    return make


@pytest.fixture
def host(make_host):
    return make_host()
