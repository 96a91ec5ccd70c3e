"""Replace an attribute of one object for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set `owner.name` on the object itself, then put back what the object itself had, or nothing.

    The class and other objects of it never change.
    """
    had = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            vars(owner).pop(name, None)


class Once:
    """A method of one object that is run inside a scope at its next call and then as before.

    Putting it there twice does not stack: the later one takes the earlier one's place.
    """

    def __init__(self, owner: Any, name: str, scope: Any) -> None:
        """scope: called with the method's arguments; returns a context manager."""
        present = vars(owner).get(name)
        self._before = present._before if isinstance(present, Once) else present
        self._owner, self._name, self._scope = owner, name, scope
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._before is None:
            vars(self._owner).pop(self._name, None)
        else:
            setattr(self._owner, self._name, self._before)
        with self._scope(*args, **kwargs):
            return getattr(self._owner, self._name)(*args, **kwargs)
