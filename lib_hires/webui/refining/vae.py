"""Decode and encode through the host, so that its precision, memory and tiling options hold."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal

import torch
from modules import devices, shared
from modules.processing import DecodedSamples, decode_latent_batch
from modules.sd_samplers_common import approximation_indexes, images_tensor_to_samples
from torch import Tensor

from lib_hires.tiled_vae import vae_tiled
from lib_hires.webui.hosts import host_of
from lib_hires.webui.hosts.protocol import FACTOR
from lib_hires.webui.messages import Warn


class HostVae:
    """The loaded model's VAE, in tiles of `tile` pixels, 0 for whole images."""

    def __init__(self, sd_model: Any, tile: int, warn: Warn) -> None:
        self._model = sd_model
        self._tile = tile
        self._warn = warn
        self._last: tuple[Tensor, Tensor] | None = None
        self.stated: dict[str, str] = {}  # what the host's PNG info says of such a VAE

    def remember(self, latent: Tensor, images: Tensor) -> None:
        """Take `images` for what decoding `latent` gives."""
        self._last = latent, images

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (b, 4, h, w) to images (b, 3, H, W) around [-1, 1], float32."""
        if self._last is None or self._last[0] is not latent:
            self.remember(latent, self._in_tiles(self._decode, latent, decode=True))
        assert self._last is not None
        return self._last[1]

    def encode(self, images: Tensor) -> Tensor:
        """Images (b, 3, H, W) in [-1, 1] to latents, the posterior's mode; what the host gives, and
        a message, where it encodes in tiles of its own."""
        return self._in_tiles(self._encode, images, decode=False)

    def finished(self, latent: Tensor) -> Tensor | DecodedSamples:
        """What the host goes on with: the images, where they are decoded here already or tiles are
        wanted, else the latent."""
        known = self._last is not None and self._last[0] is latent
        if not self._tile and not known:
            return latent
        decoded = DecodedSamples()
        decoded.extend(self.decode(latent).to(devices.cpu))
        return decoded

    def _method(self, way: Literal["encode", "decode"]) -> str:
        """The host's option: "Full", or an approximation, which its PNG info states."""
        method = str(getattr(shared.opts, f"sd_vae_{way}_method", "Full"))
        if method != "Full":
            self.stated[f"VAE {way.capitalize()}r"] = method
        return method

    def _decode(self, latent: Tensor) -> Tensor:
        """What the decoder gives, where the host does nothing but clamp it to [-1, 1], as Forge and
        its kin do; else, in tiles or changed by an extension, what the host gives."""
        self._method("decode")
        size = tuple(side * FACTOR for side in latent.shape[-2:])
        here, heard = threading.get_ident(), list[Tensor]()

        def hear(_: Any, __: Any, made: Tensor) -> None:
            if threading.get_ident() == here and made.shape[-2:] == size:  # not a live preview's
                heard.append(made)

        decoder = host_of(self._model).autoencoder(self._model).decoder
        with decoder.register_forward_hook(hear):
            images = torch.stack(decode_latent_batch(self._model, latent, check_for_nans=True))
        if sum(map(len, heard)) == len(images):
            whole = torch.cat(heard).to(images)
            if torch.allclose(whole.clamp(-1, 1), images, atol=0.01):
                images = whole
        return images.float()

    def _encode(self, images: Tensor) -> Tensor:
        method = self._method("encode")
        if method != "Full":
            return images_tensor_to_samples(images * 0.5 + 0.5, approximation_indexes[method])
        with devices.autocast(disable=devices.dtype_vae == torch.float32):
            return torch.cat([self._encode_one(image[None]) for image in images])

    def _encode_one(self, image: Tensor) -> Tensor:
        """The mode of the posterior; the model's own way would draw a sample from it.

        The first half of the moments that the encoder gives is the mean. They are overheard, for
        SDXL's code draws inside, and memory options and tiling extensions act on the way there.
        A host that has tiles of its own shows those of tiles alone.
        """
        image = image.to(device=shared.device, dtype=devices.dtype_vae)
        size = tuple(side // FACTOR for side in image.shape[-2:])
        moments: list[Tensor] = []
        host = host_of(self._model)
        vae = host.autoencoder(self._model)
        last_layer = vae.encoder if vae.quant_conv is None else vae.quant_conv  # Flux has none
        with (
            last_layer.register_forward_hook(lambda *call: moments.append(call[2])),
            torch.random.fork_rng(devices=[]),  # what is drawn there is the CPU's
        ):
            given = self._model.encode_first_stage(image)
            whole = [heard for heard in moments if heard.shape[-2:] == size]
            if not whole:
                self._warn("the WebUI encodes in tiles of its own, which adds a little noise.")
                return self._model.get_first_stage_encoding(given)
        mean, _ = whole[-1].chunk(2, dim=1)
        return host.scaled(self._model, mean).to(image.device)  # Forge's VAE may be on the CPU

    def _in_tiles(self, function: Callable[[Tensor], Tensor], x: Tensor, decode: bool) -> Tensor:
        if not self._tile or max(x.shape[-2:]) * (FACTOR if decode else 1) <= self._tile:
            return function(x)
        host = host_of(self._model)
        vae = host.autoencoder(self._model)
        with host.frugal_attention(self._model):
            return vae_tiled(function, x, vae=vae, pixels=self._tile, factor=FACTOR, decode=decode)
