"""Measuring any model's images: a folder of references, Inception's features and CLIP's score.

Nothing is downloaded. Where a network's weights are missing, its columns stay empty and a message
describes how to get them.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.benchmarks.quality.generation import Subject
from lib_hires.standalone.benchmarks.quality.measures import Mark, Names
from lib_hires.standalone.models import usable
from lib_hires.standalone.models.checkpoint import listed
from lib_hires.standalone.models.latent import reason
from lib_hires.standalone.pipeline.batch import read_lines
from lib_hires.standalone.pipeline.images import image_size, images_in, read_image
from lib_hires.standalone.pipeline.request import Request

OPTION = "--references"  # which names the folder in messages
INCEPTION_FOLDER = Path("/tmp")  # where clean-fid keeps its weights
INCEPTION_FILE = "inception-2015-12-05.pt"  # as clean-fid names them
CLIP = "openai/clip-vit-large-patch14"


class WeightsMissing(Exception):
    """A network that is not on this machine; the message describes how to get it."""


class Referenced:
    """A `Measurer`: FID, KID and their like on crops, and the CLIP score.

    Raises SettingsError for a folder without images that can be read, at least two, and
    ModelError for a device that is not there.
    """

    names = Names("fid", "patch_fid", "kid", "patch_kid")
    apart = slice(0, None, 2)

    def __init__(
        self,
        references: Path,
        subject: Subject,
        inception: Path = INCEPTION_FOLDER,
        clip: str = CLIP,
    ) -> None:
        """inception: the folder of clean-fid's weights. clip: a folder, or a name on the Hub."""
        self._references = _images(references)
        self._subject = subject
        device = usable(subject.device)
        self.notes: list[str] = []
        self._inception = self._loaded(lambda: load_inception(inception, device))
        self._clip = self._loaded(lambda: load_clip(clip, device))

    def _loaded(self, load: Callable[[], Any]) -> Any:
        try:
            return load()
        except WeightsMissing as missing:
            self.notes.append(str(missing))
            return None

    def true_images(self, width: int, height: int) -> Iterator[Image.Image]:
        """The references, cropped around the middle to the shape and resized."""
        small = 0
        for path in tqdm(self._references, desc="references", leave=False):
            upright = read_image(path, OPTION)
            small += upright.width < width or upright.height < height
            yield ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
        if small:
            self.notes.append(
                f"{small} of {len(self._references)} references are smaller than {width}x{height} "
                "and were upsampled: patch_fid, patch_kid and detail compare with blurred images"
            )

    def other_true_images(
        self, count: int, width: int, height: int
    ) -> Iterator[tuple[None, Image.Image]]:
        """Every other reference, which the calibration holds against the rest.

        They have no prompts. None where there are fewer than 4 references.
        """
        others = self._references[1::2][:count] if len(self._references) >= 4 else []
        for path in others:
            upright = read_image(path, OPTION)
            yield None, ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)

    def features(self, images: Tensor, crops: bool) -> Tensor | None:
        return self._inception and self._inception(images)

    def marks(self, image: Tensor, seed: int) -> dict[str, Mark]:
        prompt = self._subject.request(seed).prompt
        return {"clip_score": self._clip and self._clip.score(image, prompt)}


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts of a text, one a line. Raises SettingsError, also where there is more in it."""

    def refuse(message: str) -> None:
        raise SettingsError(f"--prompts: {message}")

    lines, _ = read_lines(file, Request(), Settings(), refuse)
    for line in lines:
        if line.request != Request(prompt=line.request.prompt) or line.settings != Settings():
            refuse(f"{file.name}, line {line.number}: expected a prompt alone")
    return tuple(line.request.prompt for line in lines)


def _images(folder: Path) -> list[Path]:
    """All images of the folder, each read once. Raises SettingsError."""
    found = images_in(folder, OPTION)
    if len(found) < 2:
        raise SettingsError(f"{OPTION}: expected 2 images or more in {folder}")
    for path in found:
        image_size(path, OPTION)
    return found


# --- Inception ------------------------------------------------------------------------------------


def load_inception(folder: Path, device: str | torch.device = "cpu") -> Callable[[Tensor], Tensor]:
    """The features of clean-fid (Parmar et al. 2022): (b, 3, H, W) in [-1, 1] -> (b, 2048).

    Images are resized to 299x299 without aliasing, which large ones need: the FID of others is
    moved by what their resizing makes of fine detail. Raises WeightsMissing.
    """
    if importlib.util.find_spec("cleanfid") is None:
        raise WeightsMissing("FID and KID are left out: pip install -e '.[measures]'")
    if not (folder / INCEPTION_FILE).is_file():
        fetch = "from cleanfid.downloads_helper import check_download_inception as get"
        raise WeightsMissing(
            f"FID and KID are left out: there is no {INCEPTION_FILE} in {folder}; get it with "
            f"python -c \"{fetch}; get('{folder}')\" or name its folder with --inception"
        )
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    try:
        with _retired_functions():
            network = InceptionV3W(str(folder), download=False).to(device).eval()
    except (RuntimeError, AttributeError):
        path = folder / INCEPTION_FILE
        raise SettingsError(f"--inception: {path} cannot be read; get it again") from None
    resize = build_resizer("clean")

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        pixels = _bytes(images).permute(0, 2, 3, 1).numpy()
        with _retired_functions():
            resized = np.stack([resize(image) for image in pixels])
        return network(torch.from_numpy(resized).permute(0, 3, 1, 2).to(device)).cpu()

    return features


@contextmanager
def _retired_functions() -> Iterator[None]:
    """clean-fid calls some that torch and Pillow still have and warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as those of their files."""
    return ((images + 1) * 127.5).round().byte()


# --- CLIP -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP network with what prepares its inputs."""

    model: Any
    processor: Any

    @torch.no_grad()
    def score(self, image: Tensor, prompt: str) -> float:
        """100 max(cos, 0) of an image (1, 3, H, W) in [-1, 1] and its prompt (Hessel et al. 2021).

        As torchmetrics computes it; the paper's own is 2.5 max(cos, 0). A prompt's end beyond what
        the text encoder takes is left out.
        """
        inputs = self.processor(
            text=[prompt],
            images=_bytes(image[0]),
            return_tensors="pt",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
        ).to(self.model.device)
        seen = self.model(**inputs)
        cos = F.cosine_similarity(seen.image_embeds, seen.text_embeds)
        return 100 * max(float(cos), 0.0)


def load_clip(name: str, device: str | torch.device = "cpu") -> Clip:
    """From a folder, or by its name on the Hub where its client keeps it. Raises WeightsMissing."""
    from transformers import CLIPModel, CLIPProcessor

    try:
        processor = CLIPProcessor.from_pretrained(name, local_files_only=True, use_fast=True)
        model, info = CLIPModel.from_pretrained(
            name, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError):
        raise WeightsMissing(
            f"The CLIP score is left out: {name} is not on this machine; get it with hf download "
            f"{name} or name a folder with --clip"
        ) from None
    except (SafetensorError, RuntimeError) as error:
        raise WeightsMissing(f"The CLIP score is left out: {name} {reason(error)}") from None
    if missing := sorted(info["missing_keys"]):  # transformers fills them with random numbers
        raise WeightsMissing(
            f"The CLIP score is left out: {name} lacks {listed(missing)}; name a folder of a whole "
            "CLIP, text and vision, with --clip"
        )
    return Clip(model.to(device).eval(), processor)
