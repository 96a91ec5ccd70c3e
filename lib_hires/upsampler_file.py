"""The file of a feature upsampler: a few kilobytes of safetensors, which hold no code."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib_hires.feature_upsampler import FeatureUpsampler, UpsamplerError, UpsamplerInfo
from lib_hires.files import whole_file
from lib_hires.sizes import Size, shown

SUFFIX = ".safetensors"
LARGEST = 1 << 20  # bytes
HASH = 10  # digits of the short hash
_TITLE = re.compile(rf"(.*) \[([0-9a-f]{{{HASH}}})\]", re.DOTALL)


@dataclass(frozen=True, eq=False)
class NamedUpsampler:
    """A feature upsampler with the name and short hash that an image's PNG text holds."""

    name: str
    hash: str
    weights: FeatureUpsampler

    @property
    def title(self) -> str:
        """Its name and hash: enough to find it again, and to see that the file has changed."""
        return f"{self.name} [{self.hash}]"

    def check(self, family: str, unet: Any, sizes: Sequence[Size], in_windows: bool) -> None:
        """Raises UpsamplerError where it is for other models, or for none of the stages between
        these sizes (height, width), or where these are evaluated in windows."""
        info = self.weights.info
        if in_windows:
            raise UpsamplerError(f"{self.name} works at full size only; set ug_windows to off")
        try:
            info.check(family, unet)
        except UpsamplerError as error:
            raise UpsamplerError(f"{self.name} {error}") from None
        if not any(info.fits(*pair) for pair in zip(sizes, sizes[1:], strict=False)):
            steps = " to ".join(map(shown, sizes))
            raise UpsamplerError(
                f"{self.name} was trained for stages of {info.scale:g} times the sides, and none "
                f"from {steps} is near that"
            )


def files_in(folder: Path) -> dict[str, Path]:
    """The files that may be feature upsamplers, by name, those too large for one left out."""
    return {file.stem: file for file in sorted(folder.glob(f"*{SUFFIX}")) if _may_be_one(file)}


def _may_be_one(file: Path) -> bool:
    try:
        return file.is_file() and file.stat().st_size <= LARGEST
    except OSError:  # it has just been deleted
        return False


def named_upsampler(file: Path) -> NamedUpsampler:
    """The feature upsampler in a file under the file's name. Raises UpsamplerError."""
    weights, short_hash = read_upsampler(file)
    return NamedUpsampler(file.stem, short_hash, weights)


def chosen_upsampler(title: str, files: Mapping[str, Path]) -> NamedUpsampler:
    """The one of a name, or of a title `name [hash]`, among files by name.

    Raises UpsamplerError where there is none of that name, or the file has changed.
    """
    match = _TITLE.fullmatch(title)
    name, wanted = (title, "") if title in files or not match else match.groups()
    if name not in files:
        there = ", ".join(files) or "there is none"
        raise UpsamplerError(f"expected the name of a feature upsampler ({there}), got {title!r}")
    chosen = named_upsampler(files[name])
    if wanted and chosen.hash != wanted:
        raise UpsamplerError(f"{title} is no longer here; {name} is another file now")
    return chosen


def write_upsampler(path: Path, upsampler: FeatureUpsampler, info: UpsamplerInfo) -> None:
    """Write the weights with `info`, replacing an older file only when complete.

    The header is written here and not by the library, which orders metadata at random: the same
    weights would have another short hash each time.
    """
    header: dict[str, Any] = {"__metadata__": info.metadata()}
    numbers = b""
    for name, tensor in upsampler.state_dict().items():
        values = array("f", tensor.detach().float().cpu().flatten().tolist())
        if sys.byteorder == "big":
            values.byteswap()
        offsets = [len(numbers), len(numbers) + 4 * len(values)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        numbers += values.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as partial:
        partial.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


def read_upsampler(path: Path) -> tuple[FeatureUpsampler, str]:
    """The feature upsampler in a file and the file's short hash.

    Raises UpsamplerError, which names the file, where it is missing, is not safetensors, is
    damaged, holds something else, or has missing or extra weights.
    """
    try:
        short_hash = _short_hash(path)
        metadata, tensors = _content(path)
        info = UpsamplerInfo.from_metadata(metadata)
        upsampler = FeatureUpsampler.from_tensors(info, tensors)
    except UpsamplerError as error:
        raise UpsamplerError(f"{path.name}: {error}") from None
    except OSError as error:
        raise UpsamplerError(f"{path.name}: could not be read ({error.strerror})") from None
    return upsampler, short_hash


def _short_hash(path: Path) -> str:
    """Raises UpsamplerError for a file that cannot be one: too large, or with no header."""
    if path.stat().st_size > LARGEST:
        raise UpsamplerError("is too large for a feature upsampler; choose another file")
    content = path.read_bytes()
    if content[8:9] != b"{":
        raise UpsamplerError("is not a safetensors file; choose one of hires train-upsampler")
    return hashlib.sha256(content).hexdigest()[:HASH]


def _content(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors; raises UpsamplerError for anything but whole safetensors of float32."""
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            names: list[str] = file.keys()  # the file itself cannot be iterated over
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, RuntimeError):
        raise UpsamplerError("is damaged; copy it again") from None
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise UpsamplerError("is damaged; copy it again")
    return metadata, tensors
