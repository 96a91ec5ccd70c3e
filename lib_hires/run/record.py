"""What a run did, counted while it ran; `run_plan` plans it beforehand.

The record receives every evaluation and every finished step from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from lib_hires.run.passes import Kind, pass_name
from lib_hires.sizes import Size, count, shown


@dataclass
class PassRecord:
    """One pass or stage over one batch of images, or added up over several batches."""

    kind: Kind
    number: int  # of a stage, counted from 1; 0 for a pass that the host makes by itself
    size: Size  # (height, width) of the image in pixels
    steps: int = 0  # finished ones
    guided_steps: int = 0
    mixed_steps: int = 0
    evaluations: int = 0  # of the model, native evaluations included
    native_evaluations: int = 0
    seconds: float = 0.0
    finished: bool = False
    batches: int = 1
    _guided: bool = False  # the evaluation that was begun last, ...
    _native: bool = False  # ... and whether a native evaluation was made for it

    @property
    def name(self) -> str:
        return pass_name(self.kind, self.number)

    def begin_evaluation(self) -> None:
        """The model is about to be evaluated on the whole image."""
        self.evaluations += 1
        self._guided = self._native = False

    def guide(self, native: bool) -> None:
        """Upsample Guidance acts on the evaluation; native: with a native evaluation of its own.

        Hosts may evaluate the branches (cond, uncond) one after another; that counts as one.
        """
        if native and not self._native:
            self.evaluations += 1
            self.native_evaluations += 1
        self._guided, self._native = True, self._native or native

    def mix(self) -> None:
        """Attentive Guidance acts on the state after a step."""
        self.mixed_steps += 1

    def finish_step(self) -> None:
        """A step is finished; its first evaluation was the last one begun."""
        self.steps += 1
        self.guided_steps += self._guided

    def summary(self) -> str:
        """The pass's line in the details."""
        batches = f" in {self.batches} batches" if self.batches > 1 else ""
        native = (
            f" ({self.native_evaluations} at the native size)" if self.native_evaluations else ""
        )
        parts = [
            count(self.steps, "step"),
            f"{self.guided_steps} guided" if self.guided_steps else "",
            f"{self.mixed_steps} mixed" if self.mixed_steps else "",
            f"{count(self.evaluations, 'model evaluation')}{native}",
            _seconds(self.seconds),
            "" if self.finished else "stopped before its end",
        ]
        return f"{self.name} {shown(self.size)}{batches}: {', '.join(filter(None, parts))}"


def _unknown() -> None:
    """For a device that does not count its memory."""


@dataclass
class RunRecord:
    """The passes of a run in the order in which they began, and its memory. It can be pickled.

    clock: seconds from any origin. allocated_peak: the peak of the device's memory until now, in
    bytes, None where it is not counted.
    """

    clock: Callable[[], float]
    allocated_peak: Callable[[], int | None] = _unknown
    passes: list[PassRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._earlier_peak = self._peak = self.allocated_peak()

    @contextmanager
    def taking(self, kind: Kind, size: Size, number: int = 0) -> Iterator[PassRecord]:
        """Record what happens inside the block; after an exception it counts as stopped."""
        part = PassRecord(kind, number, size)
        self.passes.append(part)
        started = self.clock()
        try:
            yield part
            part.finished = True
        finally:
            part.seconds = self.clock() - started
            self._peak = self.allocated_peak()

    @property
    def peak_memory(self) -> int | None:
        """Bytes; None where unknown, also where the peak may be from an earlier run."""
        return None if self._peak == self._earlier_peak else self._peak

    @property
    def current(self) -> PassRecord:
        """The pass that began last."""
        return self.passes[-1]

    @property
    def evaluations(self) -> int:
        return sum(part.evaluations for part in self.passes)

    @property
    def native_evaluations(self) -> int:
        return sum(part.native_evaluations for part in self.passes)

    def summary(self) -> str:
        """The line after the run; nothing where no pass began."""
        if not self.passes:
            return ""
        passes = self._over_batches()
        seconds = ", ".join(f"{part.name} in {_seconds(part.seconds)}" for part in passes)
        stopped = [f"stopped in {part.name}" for part in passes if not part.finished]
        memory = self.peak_memory
        largest = f"largest memory {memory / 2**30:.2f} GiB" if memory is not None else ""
        return "; ".join(filter(None, [self._guidance(), seconds, *stopped, largest]))

    def lines(self) -> list[str]:
        """The details: one line for each pass, its batches added up."""
        return [part.summary() for part in self._over_batches()]

    def _guidance(self) -> str:
        total = _added(self.passes)
        mixed = f", {total.mixed_steps} mixed" if total.mixed_steps else ""
        of = f"{total.guided_steps} of " if total.guided_steps else ""
        return f"{of}{count(total.steps, 'step')}{' guided' if of else ''}{mixed}"

    def _over_batches(self) -> list[PassRecord]:
        """One for each pass, in the order of the first batch."""
        parts: dict[tuple[str, Size], list[PassRecord]] = {}
        for part in self.passes:
            parts.setdefault((part.name, part.size), []).append(part)
        return [_added(batches) for batches in parts.values()]


def _added(batches: Sequence[PassRecord]) -> PassRecord:
    """Several records as one, under the first one's name."""
    return replace(
        batches[0],
        steps=sum(part.steps for part in batches),
        guided_steps=sum(part.guided_steps for part in batches),
        mixed_steps=sum(part.mixed_steps for part in batches),
        evaluations=sum(part.evaluations for part in batches),
        native_evaluations=sum(part.native_evaluations for part in batches),
        seconds=sum(part.seconds for part in batches),
        finished=all(part.finished for part in batches),
        batches=len(batches),
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"
