"""The file of a feature upsampler: safetensors, a few kilobytes, read without any library.

The layout is eight bytes with the length of a JSON header, the header (of every tensor its dtype,
shape and place, and text under `__metadata__`), and the numbers. Nothing in it can run, and a file
is refused before anything of its size is believed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
    """A feature upsampler under the name and short hash that an image's text keeps of it."""

    name: str
    hash: str
    weights: FeatureUpsampler

    @property
    def title(self) -> str:
        """What finds it again, and tells when the file of its name has become another one."""
        return f"{self.name} [{self.hash}]"

    def check(self, family: str, unet: Any, sizes: Sequence[Size], in_windows: bool) -> None:
        """Raises UpsamplerError where it is for other models, or for none of the stages between
        these sizes (height, width), or where these are asked about in windows."""
        info = self.weights.info
        if in_windows:
            raise UpsamplerError(f"{self.name} serves whole images only; set ug_windows to off")
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
    except OSError:  # it has just gone
        return False


def named_upsampler(file: Path) -> NamedUpsampler:
    """The feature upsampler in a file under the file's name. Raises UpsamplerError."""
    weights, short_hash = read_upsampler(file)
    return NamedUpsampler(file.stem, short_hash, weights)


def chosen_upsampler(title: str, files: Mapping[str, Path]) -> NamedUpsampler:
    """The one of a name, or of a title `name [hash]`, among files by name.

    Raises UpsamplerError where there is none of that name, or it is another one now.
    """
    match = _TITLE.fullmatch(title)
    name, wanted = (title, "") if title in files or not match else match.groups()
    if name not in files:
        there = ", ".join(files) or "there is none"
        raise UpsamplerError(f"expected the name of a feature upsampler ({there}), got {title!r}")
    chosen = named_upsampler(files[name])
    if wanted and chosen.hash != wanted:
        raise UpsamplerError(f"{title} is not here any more; {name} is another one now")
    return chosen


def write_upsampler(path: Path, upsampler: FeatureUpsampler, info: UpsamplerInfo) -> None:
    """Write the weights with `info`, replacing an older file only when complete."""
    header: dict[str, Any] = {"__metadata__": info.metadata()}
    numbers = b""
    for name, tensor in upsampler.state_dict().items():
        values = array("f", tensor.detach().float().cpu().flatten().tolist())
        if sys.byteorder == "big":
            values.byteswap()
        place = [len(numbers), len(numbers) + 4 * len(values)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": place}
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
        content = _content(path)
        metadata, tensors = _parsed(content)
        info = UpsamplerInfo.from_metadata(metadata)
        upsampler = FeatureUpsampler.from_tensors(info, tensors)
    except UpsamplerError as error:
        raise UpsamplerError(f"{path.name}: {error}") from None
    return upsampler, hashlib.sha256(content).hexdigest()[:HASH]


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST:
            raise UpsamplerError("is too large for a feature upsampler; give another file")
        return path.read_bytes()
    except OSError as error:
        raise UpsamplerError(f"could not be read ({error.strerror})") from None


def _parsed(content: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors; raises UpsamplerError for anything but whole safetensors of float32."""
    end = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or end > len(content) or content[8:9] != b"{":
        raise UpsamplerError("is not a safetensors file; give one of hires train-upsampler")
    try:
        header = json.loads(content[8:end])
        metadata = {str(key): str(text) for key, text in header.pop("__metadata__", {}).items()}
        tensors = {name: _tensor(entry, content[end:]) for name, entry in header.items()}
        size = sum(4 * tensor.numel() for tensor in tensors.values())
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        raise UpsamplerError("is damaged; copy it again") from None
    if size != len(content) - end:
        raise UpsamplerError("is damaged, not all of its numbers are there; copy it again")
    return metadata, tensors


def _tensor(entry: dict[str, Any], numbers: bytes) -> Tensor:
    """One tensor of the header. Raises ValueError (or what reading JSON of any shape raises)."""
    shape, (begin, stop) = [int(side) for side in entry["shape"]], entry["data_offsets"]
    whole = 0 <= begin <= stop <= len(numbers) and all(side >= 0 for side in shape)
    if entry["dtype"] != "F32" or not whole or stop - begin != 4 * math.prod(shape):
        raise ValueError
    values = array("f", numbers[begin:stop])
    if sys.byteorder == "big":
        values.byteswap()
    return torch.tensor(values, dtype=torch.float32).view(shape)
