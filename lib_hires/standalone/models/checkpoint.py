"""A safetensors file with a whole model in it: what lies where, and filling networks from it.

Files are saved by many tools. Where the networks lie is found by tensors that each must have,
names are those of `names`, and shapes may differ in axes of length one. Tensors that no network
needs are left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib_hires.standalone.models.configs import EPS, V
from lib_hires.standalone.models.kinds import no_safetensors, part_of_folder
from lib_hires.standalone.models.latent import ModelError, Prediction, reason
from lib_hires.standalone.models.names import Place, Places

log = logging.getLogger("hires_guidance")

Shapes = dict[str, list[int]]

SCALES = ("scale_weight", "weight_scale")  # of weights in 8 bits, beside them
_OTHERS = re.compile(r"(^|[._])ema[._]|^control_model\.")  # prefixes of what is not sampled with
NAMED = 3  # tensors in a message, at most


class Checkpoint:
    """An open file; its tensors are read when they are wanted.

    Raises ModelError for what is not a whole safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            self.shapes: Shapes = {
                key: list(self._file.get_slice(key).get_shape())
                for key in self._file.keys()  # noqa: SIM118
            }
            self.metadata: Mapping[str, str] = self._file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: {_not_whole(path, error)}") from error
        self._used: set[str] = set()

    def tensor(self, name: str) -> Tensor:
        """Read one, multiplied by its scale where it has one. Raises ModelError."""
        self._used.add(name)
        try:
            value = self._file.get_tensor(name)
            for scale in SCALES:
                beside = f"{name.removesuffix('weight')}{scale}"
                if name.endswith(".weight") and beside in self.shapes:
                    self._used.add(beside)
                    value = value.float() * _along_rows(self._file.get_tensor(beside), value)
        except (SafetensorError, RuntimeError) as error:
            raise ModelError(f"{self.path}: {name} cannot be read ({str(error)[:120]})") from error
        return value

    def prefixes(self, *ends: str) -> list[str]:
        """What stands before the names of every tensor of `ends`, the shortest first.

        Averages of the weights (EMA) and ControlNets are passed over.
        """
        starts = {name[: -len(ends[0])] for name in self.shapes if name.endswith(ends[0])}
        whole = [
            start
            for start in starts
            if start[-1:] in ("", ".")
            and not _OTHERS.search(start)
            and all(start + end in self.shapes for end in ends)
        ]
        return sorted(whole, key=lambda start: (len(start), start))

    def log_unused(self) -> None:
        """A debug line about the tensors that no network has taken."""
        unused = sorted(self.shapes.keys() - self._used)
        if unused:
            few = ", ".join(unused[:NAMED])
            log.debug("%s: left out %d tensors, among them %s", self.path.name, len(unused), few)


def _not_whole(path: Path, error: Exception) -> str:
    unknown = f"not a safetensors file, or a damaged one ({str(error)[:120]})"
    known = part_of_folder(path) or no_safetensors(path)
    return known or f"{unknown}; download or copy it again"


class Part:
    """The tensors of one network: those of a checkpoint whose names begin with `prefix`."""

    def __init__(self, checkpoint: Checkpoint, prefix: str, title: str) -> None:
        self.checkpoint, self.prefix, self.title = checkpoint, prefix, title
        names = (name for name in checkpoint.shapes if name.startswith(prefix))
        self.names = {name[len(prefix) :] for name in names}

    def shape(self, name: str, axes: int = 2) -> list[int]:
        """Raises ModelError where there is no such tensor, or one of other axes."""
        if name not in self.names:
            raise self._lacks([name])
        shape = self.checkpoint.shapes[self.prefix + name]
        if len(shape) != axes:
            raise self._misfit(f"{self.prefix}{name}: expected {axes} axes, got {_shown(shape)}")
        return shape

    def count(self, before: str) -> int:
        """One more than the largest number that stands behind `before` in a name."""
        found = (re.match(re.escape(before) + r"(\d+)\.", name) for name in self.names)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    def filled(self, build: Callable[[], Any], places: Places, *, exact: bool = True) -> Any:
        """The network that build() makes, without memory of its own, holding the weights.

        exact: refuse a file that has more blocks than the network. Raises ModelError.
        """
        try:
            with torch.device("meta"):
                network = build()
        except Exception as error:  # whatever a value of the configuration leads to
            raise self._misfit(reason(error)) from error
        weights, missing, taken = {}, [], set()
        for key, like in network.state_dict().items():
            options = list(places(key))
            place = next((option for option in options if option.name in self.names), None)
            if place is None:
                missing.append(options[0].name)
                continue
            taken.add(place.name)
            weights[key] = self._fitted(place, like)
        if exact and (more := of_known_form(self.names - taken, taken)):
            raise self._misfit(f"there is no place for {self.prefix}{more}")
        if missing:
            raise self._lacks(missing)
        network.load_state_dict(weights, strict=True, assign=True)
        return network

    def _fitted(self, place: Place, like: Tensor) -> Tensor:
        """The tensor of a place in the shape of `like`; axes of length one do not count."""
        value = self.checkpoint.tensor(self.prefix + place.name)
        if not value.is_floating_point():
            raise self._misfit(f"{self.prefix}{place.name} is quantized to {value.dtype}")
        if place.third is not None and value.shape[0] % 3 == 0:
            value = value.chunk(3)[place.third].clone()
        if place.transposed and value.dim() == 2:
            value = value.T.contiguous()
        if _without_ones(value.shape) != _without_ones(like.shape):
            raise self._misfit(
                f"{self.prefix}{place.name}: expected {_shown(like.shape)}, "
                f"got {_shown(value.shape)}"
            )
        return value.reshape(like.shape)

    def _misfit(self, reason: str) -> ModelError:
        path = self.checkpoint.path
        return ModelError(
            f"{path}: the {self.title} does not fit its configuration ({reason}); "
            f"put the right {path.stem.removesuffix('.vae')}.yaml and text encoder folder beside it"
        )

    def _lacks(self, names: Sequence[str]) -> ModelError:
        few = listed([self.prefix + name for name in names])
        return ModelError(
            f"{self.checkpoint.path}: the {self.title} lacks {few}; give a whole checkpoint"
        )


def of_known_form(names: Iterable[str], known: Iterable[str]) -> str | None:
    """The first of the names that differs from a known one in its numbers alone."""
    forms = {re.sub(r"\d+", "#", name) for name in known}
    return min((name for name in names if re.sub(r"\d+", "#", name) in forms), default=None)


def listed(names: Sequence[str]) -> str:
    """The first few of the names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _along_rows(scale: Tensor, value: Tensor) -> Tensor:
    """A scale in the form that multiplies `value`; one number a row (n,) gets the axes it lacks."""
    if scale.dim() == 1 and len(scale) == len(value) > 1:
        scale = scale.reshape(-1, *[1] * (value.dim() - 1))
    return scale.float()


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [length for length in shape if length != 1]


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


# --- marks ----------------------------------------------------------------------------------------


def is_edm(checkpoint: Checkpoint) -> bool:
    """Whether the file marks itself as of EDM's kind, which is not supported."""
    return any(_is_named(checkpoint, mark) for mark in ("edm_mean", "edm_std")) or any(
        "edm_vpred" in name.split(".") for name in checkpoint.shapes
    )


def marked_prediction(checkpoint: Checkpoint) -> Prediction | None:
    """What the file states of its own prediction: by a tensor's name, or in its metadata."""
    if _is_named(checkpoint, "v_pred"):
        return "v"
    metadata = _metadata(checkpoint)
    if _is_true(metadata.get("v_pred")) or _is_true(metadata.get("ss_v_parameterization")):
        return "v"
    for key in ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type"):
        if metadata.get(key) in V:
            return "v"
        if metadata.get(key) in EPS:
            return "eps"
    architecture = metadata.get("modelspec.architecture", "").partition("/")[0]
    return "v" if architecture.endswith("-v") else None  # stable-diffusion-v2-768-v


def marked_zero_snr(checkpoint: Checkpoint) -> bool:
    """Whether the file states that its schedule ends in pure noise."""
    metadata = _metadata(checkpoint)
    keys = ("ztsnr", "ss_zero_terminal_snr", "zero_terminal_snr", "rescale_betas_zero_snr")
    return _is_named(checkpoint, "ztsnr") or any(_is_true(metadata.get(key)) for key in keys)


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    items = checkpoint.metadata.items()
    return {key.lower(): str(value).strip().lower() for key, value in items}


def _is_named(checkpoint: Checkpoint, mark: str) -> bool:
    return any(name.rpartition(".")[2] == mark for name in checkpoint.shapes)


def _is_true(value: str | None) -> bool:
    return value is not None and value not in ("false", "0", "no", "none", "null")
