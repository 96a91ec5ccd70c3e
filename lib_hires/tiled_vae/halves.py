"""The two halves of a VAE, the encoder and the decoder, and the hooks at their middles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from lib_hires.sizes import Size
from lib_hires.tiled_vae.norms import of_this_thread

TINY = 2  # sides of the latent that stands in where nothing is wanted of what is computed


@dataclass(frozen=True)
class Half:
    """An encoder or a decoder, of LDM's layout or of diffusers'."""

    net: nn.Module
    first: nn.Module  # of the middle
    last: nn.Module  # of the middle
    norms: tuple[nn.GroupNorm, ...]  # outside the middle

    @classmethod
    def of(cls, vae: nn.Module, decode: bool) -> Half | None:
        """None where the middle's name is not known."""
        net: Any = getattr(vae, "decoder" if decode else "encoder", None)
        if hasattr(net, "mid_block"):  # diffusers
            middle, first, last = net.mid_block, net.mid_block, net.mid_block
        elif hasattr(net, "mid"):  # LDM and its kin
            middle, first, last = net.mid, net.mid.block_1, net.mid.block_2
        else:
            return None
        inside = set(middle.modules())
        outside = (part for part in net.modules() if part not in inside)
        norms = tuple(part for part in outside if isinstance(part, nn.GroupNorm))
        return cls(net, first, last, norms)

    @contextmanager
    def stopped_before_middle(self, size: Size) -> Iterator[list[Tensor]]:
        """Leave the block when the middle is given features of `size`; the list then holds them."""
        reached: list[Tensor] = []
        stop = partial(_stop, reached, size)
        with (
            suppress(Reached),
            self.first.register_forward_pre_hook(of_this_thread(lambda _, inputs: stop(inputs[0]))),
        ):
            yield reached

    @contextmanager
    def stopped_after_middle(self, size: Size) -> Iterator[list[Tensor]]:
        """Leave the block when the middle gives features of `size`; the list then holds them."""
        reached: list[Tensor] = []
        stop = partial(_stop, reached, size)
        with (
            suppress(Reached),
            self.last.register_forward_hook(of_this_thread(lambda *call: stop(call[2]))),
        ):
            yield reached

    @contextmanager
    def middle_takes(self, features: Tensor, factor: int) -> Iterator[None]:
        """Inside the block the encoder's middle is given `features`, whatever the image."""
        with (
            self._given_tiny(features, factor),
            self.first.register_forward_pre_hook(
                of_this_thread(lambda _, inputs: (features.to(inputs[0]), *inputs[1:]))
            ),
        ):
            yield

    @contextmanager
    def middle_gives(self, features: Tensor) -> Iterator[None]:
        """Inside the block the decoder's middle gives `features`, whatever the latent."""
        with (
            self._given_tiny(features, 1),
            self.last.register_forward_hook(of_this_thread(lambda *call: features.to(call[2]))),
        ):
            yield

    def _given_tiny(self, features: Tensor, factor: int) -> AbstractContextManager[Any]:
        """Inside the block a corner stands in for what `features` belong to, and for that alone."""
        side = TINY * factor

        def tiny(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            if latent_size(inputs[0], factor) != features.shape[-2:]:
                raise PassedBy
            return inputs[0][..., :side, :side], *inputs[1:]

        return self.net.register_forward_pre_hook(of_this_thread(tiny))


class Reached(BaseException):
    """The middle was reached, and what comes after it is not wanted.

    Not an Exception, which Forge with --directml takes for a lack of memory and tries again.
    """


class PassedBy(BaseException):
    """The function does not take what it is given through the VAE, or not the whole of it."""


def _stop(reached: list[Tensor], size: Size, features: Tensor) -> None:
    if tuple(features.shape[-2:]) == size:
        reached.append(features)
        raise Reached


def latent_size(image: Tensor, factor: int) -> Size:
    """The size in latent positions of an image (b, c, H, W), `factor` pixels each."""
    return image.shape[-2] // factor, image.shape[-1] // factor
