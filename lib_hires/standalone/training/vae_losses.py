"""What the VAE is trained on: the loss of latent diffusion (Rombach et al. 2022, appendix G).

Values and a real network's features must agree, and a critic that looks at patches must not tell
the results from truth; the latter alone makes fine detail where the latent cannot carry it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_hires.standalone.models.efficientnet import EfficientNetLite0

LAYERS = (-1, 2, 4, 7, 10)  # of the network: stem, strides 4, 8, 16, 16


class Perceptual(nn.Module):
    """Maps of EfficientNet-lite0, each channel over its deviation in true images.

    Raises NetworkMissing.
    """

    def __init__(self, examples: Tensor) -> None:
        """examples: true images (n, 3, h, w) in [-1, 1], from which the deviations are taken."""
        super().__init__()
        self._network = EfficientNetLite0()
        with torch.no_grad():
            maps = self._network.layers(examples, LAYERS)
        self._deviations = [each.std((0, 2, 3), keepdim=True) + 1e-3 for each in maps]
        self.widths = [each.shape[1] for each in maps]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of images (b, 3, h, w), sides multiples of 32."""
        maps = self._network.layers(images, LAYERS)
        return [each / scale for each, scale in zip(maps, self._deviations, strict=True)]


def feature_loss(made: Sequence[Tensor], true: Sequence[Tensor]) -> Tensor:
    """L1 between the maps of results and of true images, all maps alike."""
    pairs = zip(made, true, strict=True)
    return torch.stack([F.l1_loss(a.float(), b.float()) for a, b in pairs]).mean()


class Critic(nn.Module):
    """Scores of patches, high for truth, by branches: one that sees pixels (PatchGAN, Isola et al.
    2017) and one for each map of the perceptual network (Sauer et al. 2021), which knows what
    texture is from the first step on.

    Groups instead of batches are normalised, as batches are small.
    """

    def __init__(self, widths: Sequence[int], channels: int = 48) -> None:
        """widths: channels of the network's maps. channels: of the first layer on pixels."""
        super().__init__()
        self.pixels = nn.Sequential(
            nn.Conv2d(3, channels, 4, 2, 1),
            nn.LeakyReLU(0.2),
            _layer(channels, 2 * channels, 4, 2),
            _layer(2 * channels, 4 * channels, 4, 2),
            nn.Conv2d(4 * channels, 1, 3, 1, 1),
        )
        self.maps = nn.ModuleList(
            nn.Sequential(_layer(width, 64, 3, 1), nn.Conv2d(64, 1, 3, 1, 1)) for width in widths
        )

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """One map of scores a branch, of images (b, 3, h, w) and their features."""
        pairs = zip(self.maps, features, strict=True)
        return [self.pixels(images), *(branch(each) for branch, each in pairs)]


def _layer(inside: int, outside: int, kernel: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(inside, outside, kernel, stride, 1)
    return nn.Sequential(conv, nn.GroupNorm(16, outside), nn.LeakyReLU(0.2))


def hinge(scores: Sequence[Tensor]) -> Tensor:
    """The critic's loss from its scores of as many true images as results, in this order."""
    losses = []
    for each in scores:
        true, made = each.float().chunk(2)
        losses.append(0.5 * (F.relu(1 - true).mean() + F.relu(1 + made).mean()))
    return torch.stack(losses).mean()


def mean_score(scores: Sequence[Tensor]) -> Tensor:
    return torch.stack([each.float().mean() for each in scores]).mean()


def balance(images: Tensor, main: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """The factor that makes two losses equally strong at the decoder's last weights.

    `main` and `adversarial` are their gradients at the `images` that those weights `last` made;
    the images' graph is kept.
    """
    norms = [
        torch.autograd.grad(images, last, each, retain_graph=True)[0].norm()
        for each in (main, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4)


def value_loss(images: Tensor, true: Tensor, factor: int) -> Tensor:
    """L1 of values, of their means over the area of one latent, and twice of these means' colours.

    Colours are channels less the mean of the three; else one of them is left out for long.
    """
    means: Sequence[Tensor] = [F.avg_pool2d(each, factor) for each in (images, true)]
    colours = [each - each.mean(1, keepdim=True) for each in means]
    return F.l1_loss(images, true) + F.l1_loss(*means) + 2 * F.l1_loss(*colours)
