"""Components that remember what they were made with. They must be made inside Blocks."""

from __future__ import annotations

from typing import Any, ClassVar


class Component:
    def __init__(self, value: Any = None, **kwargs: Any) -> None:
        assert Blocks.open, "components are made inside Blocks"
        self.value = value
        self.inside = tuple(Accordion.open)
        self.events: dict[str, dict[str, Any]] = {}
        self.label = kwargs.get("label")
        self.arguments = kwargs
        for name in ("minimum", "maximum", "step", "choices", "elem_id", "info", "visible"):
            if name in kwargs:
                setattr(self, name, kwargs[name])

    def change(self, **event: Any) -> None:
        self.events["change"] = event

    def click(self, fn: Any, **event: Any) -> None:
        self.events["click"] = {"fn": fn, **event}


def update(**kwargs: Any) -> dict[str, Any]:
    return kwargs


class Checkbox(Component):
    pass


class Button(Component):
    pass


class HTML(Component):
    pass


class Dropdown(Component):
    def __init__(self, choices: list[str], value: Any = None, **kwargs: Any) -> None:
        super().__init__(value, choices=choices, **kwargs)


class Row:
    def __init__(self, **_: Any) -> None:
        pass

    def __enter__(self) -> Row:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Accordion(Row):
    """Knows whether the components being made are inside it."""

    open: ClassVar[list[str]] = []

    def __init__(self, label: str, **_: Any) -> None:
        self.label = label

    def __enter__(self) -> Accordion:
        Accordion.open.append(self.label)
        return self

    def __exit__(self, *_: object) -> None:
        Accordion.open.pop()


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
