"""Those who wait for the model: one at a time, in the order in which they came."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

LOOK = 0.5  # seconds after which one who waits looks whether to go on waiting


class Line:
    """The first has the model; the others wait behind, and may leave at any time."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._moved = threading.Condition()

    @contextmanager
    def joined(self, stop: threading.Event) -> Iterator[Place]:
        """Stand at the end of the line until the block ends; stop: when set, waiting is over."""
        place = Place(self, stop)
        with self._moved:
            self._places.append(place)
        try:
            yield place
        finally:
            with self._moved:
                self._places.remove(place)
                self._moved.notify_all()

    def ahead_of(self, place: Place) -> int:
        """How many must go first."""
        with self._moved:
            return self._places.index(place)

    def wait(self) -> None:
        """Until somebody leaves, or it is time to look."""
        with self._moved:
            self._moved.wait(LOOK)


class Place:
    """One place in a line."""

    def __init__(self, line: Line, stop: threading.Event) -> None:
        self._line, self._stop = line, stop

    def turns(self) -> Iterator[int]:
        """How many are ahead, again and again until it is one's turn or one is stopped."""
        while (ahead := self._line.ahead_of(self)) and not self._stop.is_set():
            yield ahead
            self._line.wait()
