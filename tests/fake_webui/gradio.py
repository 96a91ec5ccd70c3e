"""Components that remember what they were made with. They must be made inside Blocks."""

from __future__ import annotations

from typing import Any


class Component:
    def __init__(self, value: Any = None, **kwargs: Any) -> None:
        assert Blocks.open, "components are made inside Blocks"
        self.value = value
        self.label = kwargs.get("label")
        self.arguments = kwargs
        for name in ("minimum", "maximum", "step", "choices", "elem_id", "info"):
            if name in kwargs:
                setattr(self, name, kwargs[name])


class Checkbox(Component):
    pass


class Textbox(Component):
    pass


class Radio(Component):
    pass


class Slider(Component):
    pass


class Blocks:
    open = 0

    def __enter__(self) -> Blocks:
        Blocks.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        Blocks.open -= 1
