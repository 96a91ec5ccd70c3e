"""U-Nets of a few hundred random weights that have what feature upsamplers look for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS = (6, 5, 4, 3)  # of the skip features, the coarsest first


class Block(nn.Module):
    """A residual block as far as the adapters look: its sizes, and (x, time) to x."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.channels = self.in_channels = inputs
        self.out_channels = outputs
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.tanh(self.conv(x) + time.cos()[:, None, None, None])


class LdmBlocks(nn.Sequential):
    """LDM's TimestepEmbedSequential."""

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, time) if isinstance(layer, Block) else layer(x)
        return x


def toy_blocks() -> tuple[list[Block], list[Block], Block]:
    """Encoder, decoder and middle of a U-Net of one level a skip feature."""
    torch.manual_seed(0)
    widths = CHANNELS[::-1]
    down = [Block(a, b) for a, b in zip((4, *widths), widths, strict=False)]
    middle = Block(widths[-1], 7)
    outputs = (5, 6, 3, 4)
    up = [Block(a + b, c) for a, b, c in zip((7, *outputs), CHANNELS, outputs, strict=False)]
    return down, up, middle


def upsampled(x: Tensor, size: torch.Size) -> Tensor:
    return nn.functional.interpolate(x, size=size)


class ToyLdm(nn.Module):
    """input_blocks, middle_block and output_blocks, called as LDM's UNetModel is."""

    def __init__(self) -> None:
        super().__init__()
        down, up, middle = toy_blocks()
        self.input_blocks = nn.ModuleList(LdmBlocks(block) for block in down)
        self.middle_block = LdmBlocks(Block(3 * 2, 3 * 2), nn.Identity(), middle)
        self.output_blocks = nn.ModuleList(LdmBlocks(block, nn.Identity()) for block in up)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        kept = []
        for n, module in enumerate(self.input_blocks):
            x = module(x if n == 0 else x[..., ::2, ::2], timesteps, context)
            kept.append(x)
        x = self.middle_block(x, timesteps, context)
        for module in self.output_blocks:
            skip = kept.pop()
            x = module(torch.cat([upsampled(x, skip.shape[-2:]), skip], dim=1), timesteps, context)
        return x


class Level(nn.Module):
    def __init__(self, *blocks: Block) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(blocks)


class ToyDiffusers(nn.Module):
    """The same network under diffusers' names, called with diffusers' keywords."""

    def __init__(self) -> None:
        super().__init__()
        down, up, middle = toy_blocks()
        self.down = nn.ModuleList(down)
        self.mid_block = Level(Block(6, 6), middle)
        self.up_blocks = nn.ModuleList([Level(*up[:2]), Level(*up[2:])])

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        kept, x, time = [], sample, timestep.expand(sample.shape[0])
        for n, module in enumerate(self.down):
            x = module(x if n == 0 else x[..., ::2, ::2], time)
            kept.append(x)
        for module in self.mid_block.resnets:
            x = module(x, time)
        for level in self.up_blocks:
            for module in level.resnets:
                skip = kept.pop()
                x = module(torch.cat([upsampled(x, skip.shape[-2:]), skip], dim=1), time)
        return x
