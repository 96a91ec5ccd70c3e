"""Images to train a feature upsampler on: large and small latents, captions, small features."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_hires.feature_upsampler import captured
from lib_hires.files import whole_file
from lib_hires.noise import draw, generators
from lib_hires.settings import SettingsError
from lib_hires.sizes import Size
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.images import (
    image_size,
    images_in,
    read_caption,
    read_image,
)
from lib_hires.standalone.training.upsampler_config import UpsamplerTraining
from lib_hires.standalone.world.drawing import draw as draw_scene
from lib_hires.standalone.world.scenes import random_scene

log = logging.getLogger("hires_guidance")

OPTION = "--data"  # which names the folder in messages
CAPTIONS = (".txt", ".caption")  # endings, the first that is there being read


# --- images -------------------------------------------------------------------------------------


class Images(Protocol):
    """Captioned images that can be had at two sizes."""

    def __len__(self) -> int: ...

    def caption(self, index: int) -> str: ...

    def pair(self, index: int, large: Size, small: Size) -> tuple[Image.Image, Image.Image]:
        """The image at both sizes (height, width), RGB."""
        ...

    def identity(self) -> Any:
        """Plain values that change when any image does."""
        ...


class DrawnScenes:
    """The bundled model's world; a scene is drawn at each size, so both are sharp."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed

    def __len__(self) -> int:
        return self._count

    def caption(self, index: int) -> str:
        return self._scene(index).caption

    def pair(self, index: int, large: Size, small: Size) -> tuple[Image.Image, Image.Image]:
        scene = self._scene(index)
        return draw_scene(scene, large[1], large[0]), draw_scene(scene, small[1], small[0])

    def identity(self) -> Any:
        return ["scenes", self._seed]

    def _scene(self, index: int) -> Any:
        return random_scene(np.random.default_rng([self._seed, 5, index]))


class ImageFolder:
    """Images of a folder, each with its caption in a text file of the same name beside it.

    Images smaller than `least` (height, width) are left out, with a line in the log. All are read
    once here: raises SettingsError where a caption is missing or is not UTF-8, an image cannot be
    read, or none is left.
    """

    def __init__(self, folder: Path, least: Size) -> None:
        found = images_in(folder, OPTION)
        sizes = [image_size(path, OPTION) for path in found]
        self._paths = [
            path
            for path, (height, width) in zip(found, sizes, strict=True)
            if height >= least[0] and width >= least[1]
        ]
        if len(self._paths) < len(found):
            small = len(found) - len(self._paths)
            log.warning("%s: %d smaller than %dx%d, left out", folder, small, least[1], least[0])
        if not self._paths:
            raise SettingsError(
                f"{OPTION}: {folder} has no image of at least {least[1]}x{least[0]}"
            )
        self._captions = [_caption(path) for path in self._paths]

    def __len__(self) -> int:
        return len(self._paths)

    def caption(self, index: int) -> str:
        return self._captions[index]

    def pair(self, index: int, large: Size, small: Size) -> tuple[Image.Image, Image.Image]:
        """Cropped around the middle to the shape wanted, then reduced."""
        upright = read_image(self._paths[index], OPTION)
        first = ImageOps.fit(upright, large[::-1], Image.Resampling.LANCZOS)
        return first, first.resize(small[::-1], Image.Resampling.LANCZOS)

    def identity(self) -> Any:
        return [
            [path.name, path.stat().st_size, path.stat().st_mtime_ns, caption]
            for path, caption in zip(self._paths, self._captions, strict=True)
        ]


def _caption(path: Path) -> str:
    for ending in CAPTIONS:
        text = path.with_suffix(ending)
        if text.is_file():
            return read_caption(text, OPTION)
    name = path.with_suffix(CAPTIONS[0]).name
    raise SettingsError(f"{OPTION}: {path} has no caption; write it into {name}")


# --- examples -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Batch:
    """What the loss of some examples needs, on the model's device."""

    clean: Tensor  # (b, c, H, W) z_0 of the large images
    noise: Tensor  # (b, c, H, W)
    t: Tensor  # (b,) timesteps, whole
    cond: dict[str, Any]  # context, and SDXL's pooled text
    features: Sequence[Tensor]  # of the small images, (b, c_n, h_n, w_n)


@dataclass(frozen=True, eq=False)
class Draw:
    """Which examples, at which timesteps, with which noise; (n,) each."""

    indices: np.ndarray
    without_caption: np.ndarray
    t: np.ndarray
    seeds: np.ndarray

    def __getitem__(self, part: slice) -> Draw:
        return Draw(self.indices[part], self.without_caption[part], self.t[part], self.seeds[part])


def drawn(config: UpsamplerTraining, step: int, count: int) -> Draw:
    """A step's examples out of `count`. It depends on the seed and the step alone.

    So a resumed run goes on as if it had not stopped, and any number of parts and processes
    computes the same gradient. t is uniform in 1..K, one from each of as many equal ranges.
    """
    rng = np.random.default_rng([config.seed, step])
    n = config.batch
    share = (rng.permutation(n) + rng.random(n)) / n
    return Draw(
        indices=rng.integers(count, size=n),
        without_caption=rng.random(n) < config.caption_dropout,
        t=1 + (share * config.pivot).astype(int),
        seeds=rng.integers(2**63, size=n),
    )


class Examples:
    """Latents and features of images, computed once where there is a cache."""

    def __init__(
        self,
        model: LatentModel,
        images: Images,
        *,
        large: Size,
        small: Size,
        layers: Sequence[int],
        cache: Path | None,
        computed_as: Sequence[str],
    ) -> None:
        """computed_as: the model's hash, the precision, and what else changes the numbers."""
        self.model, self.images = model, images
        self._large, self._small, self._layers = large, small, layers
        about = [*computed_as, str(model.dtype), large, small, layers, images.identity()]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        self._cache = None if cache is None else cache / key

    def batch(self, wanted: Draw) -> Batch:
        """The examples drawn, ready for the loss."""
        pairs = [self._latents(int(index)) for index in wanted.indices]
        clean = torch.stack([pair["large"] for pair in pairs]).to(self.model.device)
        small = torch.stack([pair["small"] for pair in pairs]).to(self.model.device)
        cond = self._cond(wanted)
        noise = draw(generators(wanted.seeds.tolist()), tuple(clean.shape[1:])).to(clean)
        t = torch.from_numpy(wanted.t).to(self.model.device)
        return Batch(clean, noise, t, cond, self._features(wanted, small, cond))

    @torch.no_grad()
    def _cond(self, wanted: Draw) -> dict[str, Any]:
        """The captions, and for those left out what an empty negative prompt gives."""
        captions = [self.images.caption(int(index)) for index in wanted.indices]
        both = self.model.encode_prompts(captions, [""] * len(captions))
        empty = torch.from_numpy(wanted.without_caption).to(self.model.device)
        cond = {"context": torch.where(empty[:, None, None], both.uncond, both.cond)}
        if both.pooled_cond is not None and both.pooled_uncond is not None:
            cond["pooled"] = torch.where(empty[:, None], both.pooled_uncond, both.pooled_cond)
        return cond

    def _latents(self, index: int) -> dict[str, Tensor]:
        """`large` and `small` (c, h, w), float32, on the CPU."""

        def encoded() -> dict[str, Tensor]:
            pair = self.images.pair(index, self._large, self._small)
            latents = (self.model.encode(_tensor(image))[0].cpu() for image in pair)
            return dict(zip(("large", "small"), latents, strict=True))

        return self._kept(f"{index:07d}-latents", encoded)

    def _features(self, wanted: Draw, small: Tensor, cond: dict[str, Any]) -> list[Tensor]:
        """h_n(0) of the small latents (b, c, h, w), in one call, or one an image for a cache."""
        if self._cache is None:
            return self._captured(small, cond)
        rows = []
        for row, index in enumerate(wanted.indices):
            words = "empty" if wanted.without_caption[row] else "caption"
            alone = {name: value[row : row + 1] for name, value in cond.items()}
            found = self._kept(
                f"{index:07d}-{words}",
                lambda row=row, alone=alone: {
                    str(n): feature.cpu()
                    for n, feature in enumerate(self._captured(small[row : row + 1], alone))
                },
            )
            rows.append([found[str(n)].to(small.device) for n in range(len(self._layers))])
        return [torch.cat(parts) for parts in zip(*rows, strict=True)]

    @torch.no_grad()
    def _captured(self, small: Tensor, cond: dict[str, Any]) -> list[Tensor]:
        with captured(self.model.unet, self._layers) as features:
            self.model.predict(small, torch.zeros(len(small), device=small.device), **cond)
        return features

    def _kept(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors from the cache, computed and written where they are not there yet."""
        if self._cache is None:
            return compute()
        path = self._cache / f"{name}.safetensors"
        if not path.exists():
            self._cache.mkdir(parents=True, exist_ok=True)
            tensors = {key: value.contiguous() for key, value in compute().items()}
            with whole_file(path) as partial:
                save_file(tensors, partial)
        return load_file(path)


def _tensor(image: Image.Image) -> Tensor:
    """(1, 3, h, w) in [-1, 1]."""
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    return values / 127.5 - 1
