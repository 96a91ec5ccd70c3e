"""Small random autoencoders of the two layouts that a real one comes in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FACTOR = 4  # pixels per latent position
CHANNELS = 8


def conv(into: int = CHANNELS, out: int = CHANNELS) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1)


class Resnet(nn.Module):
    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, CHANNELS) if normed else nn.Identity()
        self.conv = conv()

    def forward(self, x: Tensor, temb: None = None) -> Tensor:
        return x + self.conv(F.silu(self.norm(x)))


class Attention(nn.Module):
    """Every position adds the mean of all, weighted by likeness."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        likeness = (tokens @ tokens.transpose(1, 2) / 8).softmax(dim=-1)
        return x + 3 * (likeness @ tokens).transpose(1, 2).reshape(x.shape)


class Middle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = Resnet(True), Attention(), Resnet(True)

    def forward(self, x: Tensor, temb: None = None) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, temb)), temb)


class Net(nn.Module):
    """The middle under LDM's name, its parts called one by one, or under diffusers', called."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        setattr(self, {"ldm": "mid", "diffusers": "mid_block"}.get(layout, "centre"), Middle())

    def middle(self, x: Tensor) -> Tensor:
        if self.layout == "ldm":
            return self.mid.block_2(self.mid.attn_1(self.mid.block_1(x, None)), None)
        return (self.mid_block if self.layout == "diffusers" else self.centre)(x, None)


class Decoder(Net):
    def __init__(self, layout: str, normed: bool) -> None:
        super().__init__(layout)
        self.conv_in, self.conv_out = conv(into=4), conv(out=3)
        self.up = nn.ModuleList(Resnet(normed) for _ in range(3))

    def forward(self, z: Tensor) -> Tensor:
        h = self.up[0](self.middle(self.conv_in(z)))
        for block in self.up[1:]:
            h = block(F.interpolate(h, scale_factor=2.0))
        return self.conv_out(h)


class Encoder(Net):
    def __init__(self, layout: str, normed: bool) -> None:
        super().__init__(layout)
        self.conv_in, self.conv_out = conv(into=3), conv(out=4)
        self.down = nn.ModuleList(Resnet(normed) for _ in range(2))
        self.norm_out = nn.GroupNorm(4, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for block in self.down:
            h = F.avg_pool2d(block(h), 2)
        return self.conv_out(self.norm_out(self.middle(h)))


class ToyVae(nn.Module):
    """layout: "ldm", "diffusers", or any other for a middle of an unknown name.

    normed: with group norms outside the middle too, without which tiles can be exact.
    """

    def __init__(self, layout: str = "ldm", normed: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = Encoder(layout, normed), Decoder(layout, normed)
        for norm in self.modules():
            if isinstance(norm, nn.GroupNorm):
                nn.init.normal_(norm.weight, mean=1.0, std=0.3)
                nn.init.normal_(norm.bias, std=0.3)
        self.requires_grad_(False)

    def half(self, decode: bool) -> nn.Module:
        return self.decoder if decode else self.encoder


def uneven(height: int, width: int, images: int = 1, channels: int = 4) -> Tensor:
    """Noise that is brighter at one side, and louder at the other, by image."""
    torch.manual_seed(1)
    slope = torch.linspace(0, 2, width)
    noise = torch.randn(images, channels, height, width) * (2.2 - slope)
    return (noise + 2 * slope) * torch.linspace(1, 2, images)[:, None, None, None]
