"""The rows of a report on clips, and their table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lib_hires.standalone.benchmarks.quality.real_features import Beside, Reference, within_noise
from lib_hires.standalone.benchmarks.video.measures import Seen, cuts, jitter, short_clips, travel


class Report:
    """The rows of clips of one size and rate; columns with `beside` are divided by true clips'."""

    def __init__(self, sides: int, times: int, true: Sequence[Seen]) -> None:
        """true: measures of clips that have no row themselves."""
        self._size, self._true = {"sides": sides, "times": times}, true
        crops = np.stack([each.crops for each in true])
        self._reference = Reference(crops) if crops.size else None
        self._short = Reference(_short(true))
        self._beside: dict[str, Beside] = {}
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, clips: Sequence[Seen], **more: Any) -> None:
        """A row of measured clips; more: other columns."""
        crops = np.stack([each.crops for each in clips])
        if self._reference is not None:
            self._beside[name] = self._reference.beside(crops)
        row = {"technique": name, **self._size, "clips": len(clips), **self._measures(clips)}
        self.rows.append(row | self._distance(name) | more)

    def close(self) -> list[str]:
        """One sentence for each row that lies within the noise of others."""
        size = "{sides}x the sides, {times}x the frames".format(**self._size)
        return [f"{size}: {line}" for line in within_noise(self._beside)]

    def _measures(self, clips: Sequence[Seen]) -> dict[str, Any]:
        def mean(of: Any, some: Sequence[Seen] = clips) -> float:
            return float(np.mean([of(each) for each in some]))

        def beside(of: Any) -> float:
            return round(mean(of) / mean(of, self._true), 3)

        short = self._short.beside(_short(clips)).kernel_distance()
        return {
            "one_object": round(mean(lambda c: c.one_object.mean()), 3),
            "right_class": round(mean(lambda c: c.right_class.mean()), 3),
            "right_colour": round(mean(lambda c: c.right_colour.mean()), 3),
            "cuts": round(mean(lambda c: cuts(c.centre, self._size["times"])), 2),
            "travel_beside": beside(lambda c: travel(c.centre)),
            "path_jitter_beside": beside(lambda c: jitter(c.centre)),
            "size_jitter_beside": beside(lambda c: jitter(c.size)),
            "change_beside": beside(lambda c: c.change.mean()),
            "residual_beside": beside(lambda c: c.residual.mean()),
            "kd_clips": round(short.value, 4),
            "kd_clips_error": round(short.error, 4),
        }

    def _distance(self, name: str) -> dict[str, Any]:
        if name not in self._beside:
            return {"kd_crop": None, "kd_crop_error": None}
        found = self._beside[name].kernel_distance()
        return {"kd_crop": round(found.value, 4), "kd_crop_error": round(found.error, 4)}


def _short(clips: Sequence[Seen]) -> np.ndarray:
    """(n, k, d) of n clips' short clips: only those of different clips are pairs."""
    return np.stack([short_clips(each.features) for each in clips])


COLUMNS = (
    ("technique", "technique"),
    ("sides", "sides"),
    ("times", "frames"),
    ("one_object", "one object"),
    ("right_class", "class"),
    ("right_colour", "colour"),
    ("cuts", "cuts a clip"),
    ("travel_beside", "travel"),
    ("path_jitter_beside", "path's jitter"),
    ("size_jitter_beside", "size's jitter"),
    ("change_beside", "change"),
    ("residual_beside", "change without motion"),
    ("kd_clips", "kd of short clips"),
    ("kd_clips_error", "its error"),
    ("kd_crop", "kd_crop"),
    ("kd_crop_error", "its error"),
    ("seconds", "s a clip"),
)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown. Travel, jitter and change are relative to those of true clips."""
    return list(_lines(rows))


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| " + " | ".join(title for _, title in COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    for row in rows:
        cells = (row.get(name, "") for name, _ in COLUMNS)
        yield "| " + " | ".join(map(str, cells)) + " |"
