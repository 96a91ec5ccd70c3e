"""What a run of the host's carries of ours: one object on `p`, made as the run begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lib_hires.run.record import RunRecord
from lib_hires.settings import NOTHING, Plain, Settings
from lib_hires.sizes import Size
from lib_hires.upsampler_file import NamedUpsampler
from lib_hires.webui.callers import HOST, Caller
from lib_hires.webui.messages import Warn, warn_user
from lib_hires.webui.surfaces import infotext

STATE = "hires_guidance_run"  # on p

OFF: Mapping[str, Plain] = {
    "ug": False,
    "ug_windows": "off",
    "pfsa": False,
    "refine": False,
    "refine_upsampler": NOTHING,
    "refine_keep_stages": False,
}
"""The settings that can be left out of a run, and their values there."""


@dataclass
class RunState:
    """It can be pickled, as queues and remote workers may do with `p`.

    settings: what the run is made with; what cannot work in it is off.
    upsampler: the feature upsampler that they name.
    size: (height, width) in pixels of the image before the stages, once the host knows it.
    kept: images before the last stage, with their PNG info.
    acted, left_out: which of OFF have done something in the present batch, and which have been left
    out somewhere in it.
    idle, note: what is left out of every batch, and the messages about the whole run.
    batch: the number of the batch that is sampled, once one is.
    controlnet: the units of the run, which stay in this process.
    """

    record: RunRecord
    settings: Settings = field(default_factory=Settings)
    upsampler: NamedUpsampler | None = None
    caller: Caller = HOST
    size: Size | None = None
    kept: list[Any] = field(default_factory=list)
    acted: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)
    idle: set[str] = field(default_factory=set)
    note: str = ""
    batch: int | None = None
    controlnet: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "controlnet": None}


@dataclass(frozen=True)
class HostRun:
    """A run of the host's, and what it carries of ours."""

    p: Any
    state: RunState

    @classmethod
    def of(cls, p: Any) -> HostRun:
        """The run of `p`; one that has not begun by the host's first hook does nothing of ours."""
        state: RunState | None = vars(p).get(STATE)
        return cls(p, state) if state else cls.begin(p, RunState(RunRecord(time.perf_counter)))

    @classmethod
    def begin(cls, p: Any, state: RunState) -> HostRun:
        """A state of its own for each run: the host's X/Y/Z copies p, but not what is on it."""
        setattr(p, STATE, state)
        return cls(p, state)

    @property
    def settings(self) -> Settings:
        return self.state.settings

    @property
    def record(self) -> RunRecord:
        return self.state.record

    def warn(self, message: str) -> None:
        """Show a message to the user, once."""
        warn_user(self.p, message)

    def turn_off(self, names: Iterable[str], message: str) -> None:
        """Leave these of OFF out of the whole run, and of its PNG info."""
        self.state.settings = self._without(names)
        self.warn(message)
        self.state.note = f"{self.state.note} {message}".lstrip()
        infotext.keep_only(self.state.settings, self.p.extra_generation_params)

    def leaving_out(self, name: str) -> Warn:
        """A function that warns of one of OFF that does nothing, or no more, in one of the passes.

        What has acted nowhere when the images are finished is not in their PNG info.
        """

        def warn(message: str) -> None:
            self.state.left_out.add(name)
            self.warn(message)

        return warn

    def acting(self, *names: str) -> Callable[..., None]:
        """A function to be called wherever these of OFF have acted."""
        return lambda *_: self.state.acted.update(names)

    def keep_messages(self) -> None:
        """What has been warned of until now is about every batch of the run."""
        self.state.idle = set(self.state.left_out)
        self.state.note = self.p.extra_generation_params.get(infotext.NOTE, "")

    def begin_batch(self, number: int) -> None:
        """The PNG info of a later batch says nothing of what happened in the one before.

        number: the host's, from 0.
        """
        later, self.state.batch = self.state.batch not in (None, number), number
        if not later:
            return
        self.state.acted, self.state.left_out = set(), set(self.state.idle)
        parameters = self.p.extra_generation_params
        infotext.write(self.state.settings, parameters)
        if self.state.note:
            parameters[infotext.NOTE] = self.state.note

    def describe(self) -> None:
        """Take what has acted nowhere out of the PNG info."""
        idle = self.state.left_out - self.state.acted
        if idle:
            infotext.keep_only(self._without(idle), self.p.extra_generation_params)

    def _without(self, names: Iterable[str]) -> Settings:
        return self.state.settings.updated({name: OFF[name] for name in names})
