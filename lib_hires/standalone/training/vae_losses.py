"""What the VAE is trained on: the loss of latent diffusion (Rombach et al. 2022, appendix G).

Values and a real network's features must agree, and a discriminator that looks at patches must not
tell the results from truth; the latter alone makes fine detail where the latent cannot carry it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_hires.standalone.models.efficientnet import EfficientNetLite0

LAYERS = (-1, 2, 4, 7, 10)  # of the network: stem, strides 4, 8, 16, 16


class Perceptual(nn.Module):
    """L1 between features of EfficientNet-lite0, each channel over its deviation in true images.

    Raises NetworkMissing.
    """

    def __init__(self, examples: Tensor) -> None:
        """examples: true images (n, 3, h, w) in [-1, 1], from which the deviations are taken."""
        super().__init__()
        self.network = EfficientNetLite0()
        with torch.no_grad():
            maps = self.network.layers(examples, LAYERS)
        self._deviations = [each.std((0, 2, 3), keepdim=True) + 1e-3 for each in maps]

    def features(self, images: Tensor) -> list[Tensor]:
        """Scaled maps of images (b, 3, h, w), sides multiples of 32."""
        maps = self.network.layers(images, LAYERS)
        return [each / scale for each, scale in zip(maps, self._deviations, strict=True)]

    def forward(self, images: Tensor, true: Tensor) -> Tensor:
        with torch.no_grad():
            expected = self.features(true)
        pairs = zip(self.features(images), expected, strict=True)
        return torch.stack([F.l1_loss(a.float(), b.float()) for a, b in pairs]).mean()


class Discriminator(nn.Sequential):
    """PatchGAN (Isola et al. 2017): images (b, 3, h, w) to a map of scores, high for truth.

    A score sees 70x70 pixels. Groups instead of batches are normalised, as batches are small.
    """

    def __init__(self, channels: int = 64) -> None:
        widths = (channels, 2 * channels, 4 * channels, 4 * channels)
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for k, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 2 if k < 2 else 1
            layers += [
                nn.Conv2d(before, after, 4, stride, 1),
                nn.GroupNorm(16, after),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))


def hinge(true: Tensor, made: Tensor) -> Tensor:
    """The discriminator's loss from its scores of true images and of results."""
    return 0.5 * (F.relu(1 - true.float()).mean() + F.relu(1 + made.float()).mean())


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
    """L1 of values, and of their means over the area of one latent, so that colours stay."""
    means: Sequence[Tensor] = [F.avg_pool2d(each, factor) for each in (images, true)]
    return F.l1_loss(images, true) + F.l1_loss(*means)
