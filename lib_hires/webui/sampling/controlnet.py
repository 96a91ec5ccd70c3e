"""ControlNet (the extension sd-webui-controlnet) at sizes that it has made no hints for.

It replaces the U-Net's `forward` with a loop of its own, which takes each unit's hint as it is and
fails where that is not 8 times the latent. Here each call of the U-Net gets hints of its size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_hires.resample import area_means
from lib_hires.run.passes import Kind
from lib_hires.sizes import Size
from lib_hires.webui.hosts.protocol import FACTOR
from lib_hires.webui.messages import Warn
from lib_hires.webui.patching import replaced
from lib_hires.webui.run_state import HostRun

HINT, HIRES_HINT = "_hint_cond", "hr_hint_cond"
USED = ("used_hint_cond", "used_hint_cond_latent", "used_hint_inpaint_hijack")
"""What a unit (its `ControlParams`) knows of its hint: both sizes of it, and what is made of it."""


def controlnet_of(run: HostRun) -> ControlNet | None:
    """ControlNet as it is set up for this run; None where it is not installed or has no unit.

    One object for the whole run, made before its first sampling: later other extensions may have
    left a part of a hint on a unit, as Tiled Diffusion leaves that of its last tile.
    """
    for script in getattr(run.p.scripts, "alwayson_scripts", ()):
        network = getattr(script, "latest_network", None)
        if script.title() == "ControlNet" and getattr(network, "control_params", None):
            known: ControlNet | None = run.state.controlnet
            if known is None or not known.is_of(network):
                run.state.controlnet = ControlNet(network)
            return run.state.controlnet
    return None


class ControlNet:
    """The units that act in this run, and their whole hints."""

    def __init__(self, network: Any) -> None:
        """network: the extension's hook of the U-Net."""
        self._network = network
        self._whole: dict[int, tuple[Any, list[Tensor]]] = {}  # the unit and its hints, by its id
        self._states: dict[tuple[int, Size, bool], dict[str, Any]] = {}
        self._native = False
        self._keep_hints()

    def is_of(self, network: Any) -> bool:
        """Whether this stands for that hook of the U-Net."""
        return self._network is network

    def marked(self, cond: Any, uncond: Any) -> None:
        """Mark conds in place as the extension does it, so that it knows which is which."""
        mark = getattr(sys.modules[type(self._network).__module__], "mark_prompt_context", None)
        if mark is not None:
            mark(cond, positive=True)
            mark(uncond, positive=False)

    @contextmanager
    def native_scope(self) -> Iterator[None]:
        """Around each native evaluation: others may be of its size, such as those of tiles."""
        self._native = True
        try:
            yield
        finally:
            self._native = False

    @contextmanager
    def fitting(self, kind: Kind, guided: bool, native: bool, warn: Warn) -> Iterator[None]:
        """Inside the block every call of the U-Net finds hints of its own size.

        kind: the pass; units can be limited to either side of Hires. fix, and the stages come
        after it. guided: whether native evaluations are made. native: whether the units act there
        too.
        """
        unet, stage = self._network.model, kind == "stage"
        known = all(map(_is_known, self._units))
        if not known and (guided or stage):
            warn(
                "ControlNet was left out at sizes other than its own, because this version of it "
                "is not known."
            )
        self._keep_hints()
        controlled = unet.forward

        def scope(size: Size) -> AbstractContextManager[None]:
            if not known or (self._native and not native):
                return self._left_out() if self._native or stage else nullcontext()
            if not self._native and self._fits(size):  # tiles carry their part of the hint
                return nullcontext()
            return self._resized(size, second=stage or kind == "hires")

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            with scope((x.shape[-2], x.shape[-1])):
                result: Tensor = controlled(x, *args, **kwargs)
                return result

        with replaced(unet, "forward", forward):
            yield

    @property
    def _units(self) -> list[Any]:
        units: list[Any] = self._network.control_params
        return units

    def _keep_hints(self) -> None:
        """Of the units that are seen for the first time."""
        for unit in filter(_is_known, self._units):
            if id(unit) not in self._whole:
                self._whole[id(unit)] = unit, _hints(unit)

    def _fits(self, size: Size) -> bool:
        """Whether every unit has a hint for latents of this size, or none that has a size."""
        pixels = size[0] * FACTOR, size[1] * FACTOR
        return all(
            any(tuple(hint.shape[-2:]) == pixels for hint in hints)
            for hints in map(_hints, self._units)
            if hints
        )

    @contextmanager
    def _left_out(self) -> Iterator[None]:
        """Without units, and outside the share of the run in which attention units act."""
        unet = self._network.model
        with (
            replaced(self._network, "control_params", []),
            replaced(unet, "current_sampling_percent", -1.0),
        ):
            yield

    @contextmanager
    def _resized(self, size: Size, second: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for unit in self._units:
                _, hints = self._whole.get(id(unit), (unit, []))
                if hints:
                    stack.enter_context(self._resized_hint(unit, hints, size, second))
                stack.enter_context(_fresh_embeddings(unit))
            yield

    @contextmanager
    def _resized_hint(
        self, unit: Any, hints: list[Tensor], size: Size, second: bool
    ) -> Iterator[None]:
        """What is made of the hint, such as its latent, is kept for the next call of this size."""
        key = id(unit), size, second
        if key not in self._states:
            self._states[key] = _state(hints, size, second)
        state = self._states[key]
        before = {name: getattr(unit, name) for name in state}
        vars(unit).update(state)
        try:
            yield
        finally:
            state.update({name: getattr(unit, name) for name in state})
            vars(unit).update(before)


def _is_known(unit: Any) -> bool:
    """Whether it is a unit as this version of the extension makes them."""
    return {HINT, HIRES_HINT, *USED} <= vars(unit).keys()


def _hints(unit: Any) -> list[Tensor]:
    """The unit's hints that are images (b, c, h, w): the plain one, and that for Hires. fix.

    Three channels, or four with a mask; SparseCtrl's five are latents.
    """
    hints = getattr(unit, HINT), getattr(unit, HIRES_HINT)
    return [
        hint
        for hint in hints
        if isinstance(hint, Tensor) and hint.ndim == 4 and hint.shape[1] in (3, 4)
    ]


def _state(hints: list[Tensor], size: Size, second: bool) -> dict[str, Any]:
    """A unit's hint for latents of this size, from its whole ones.

    second: take the side of Hires. fix's second pass. The extension compares the latent with both
    hints and takes the second where it is as near; without a second one it is the first's side.
    """
    hint = resized_hint(hints[-1], (size[0] * FACTOR, size[1] * FACTOR))
    beside = hint if second and len(hints) == 2 else None
    return {HINT: hint, HIRES_HINT: beside, **dict.fromkeys(USED)}


def resized_hint(hint: Tensor, size: Size) -> Tensor:
    """A hint (b, c, h, w) at another size; of four channels the last is a mask and stays hard."""
    if tuple(hint.shape[-2:]) == size:
        return hint
    if size[0] <= hint.shape[-2] and size[1] <= hint.shape[-1]:
        resized = area_means(hint, size)
    else:
        resized = F.interpolate(hint.float(), size=size, mode="bilinear", align_corners=False)
    resized = resized.to(hint.dtype)
    if hint.shape[1] != 4:
        return resized
    mask = F.interpolate(hint[:, 3:].float(), size=size, mode="nearest-exact").to(hint.dtype)
    return torch.cat([resized[:, :3], mask], dim=1)


@contextmanager
def _fresh_embeddings(unit: Any) -> Iterator[None]:
    """ControlLLLite keeps what it makes of its image, in the size of the first call."""
    parts = getattr(unit.control_model, "modules", None)
    if not isinstance(parts, dict):  # every other kind has torch's method of that name
        yield
        return
    with ExitStack() as stack:
        for part in parts.values():
            stack.enter_context(replaced(part, "cond_emb", None))
        yield
