"""What a node is, whatever the host's API: inputs, outputs and a function.

`register` makes the host's classes from it. A control's widget comes from its declaration in
`lib_hires.settings`: name, label, bounds, default and help.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from lib_hires.settings import Declaration, declarations

CATEGORY = "hires"


@dataclass(frozen=True)
class Input:
    """An input or a widget. type: the host's name of it, as "MODEL" or "FLOAT".

    options: of a widget, as the host names them: default, min, max, step, options (of a COMBO).
    listed: gives the options of a COMBO, each time that the page asks for them.
    """

    name: str
    type: str
    help: str = ""
    label: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    optional: bool = False
    listed: Callable[[], list[str]] | None = None

    def widget_options(self) -> dict[str, Any]:
        """The options as they are now."""
        listed = {"options": self.listed()} if self.listed else {}
        return {**dict(self.options), **listed}


@dataclass(frozen=True)
class Output:
    """An output. many: a list, each part of which goes to the next node by itself."""

    type: str
    name: str
    help: str = ""
    many: bool = False


@dataclass(frozen=True)
class Node:
    """A node. run: receives the inputs by name and returns one value for each output.

    shown: the name of the output of type IMAGE that the node shows; it then runs by itself, whether
    anything is connected to it or not. with_workflow: run receives `workflow` too, a dictionary of
    what the host writes into the images that it saves.
    """

    id: str
    title: str
    help: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    run: Callable[..., tuple[Any, ...]]
    shown: str = ""
    with_workflow: bool = False

    def shown_of(self, values: tuple[Any, ...]) -> Any:
        """The image among a run's values that the node shows; None where it shows none."""
        names = [output.name for output in self.outputs]
        return values[names.index(self.shown)] if self.shown else None


def widget(name: str, type: str, help: str = "", label: str = "", **options: Any) -> Input:
    """An input with a widget."""
    return Input(name, type, help, label, tuple(options.items()))


def control_widgets(group: str, left_out: Collection[str] = ()) -> tuple[Input, ...]:
    """The widgets of a group's controls, under their names without the group's.

    Without the switch, because the node itself is one, without what the WebUI alone has, and
    without those whose short names are `left_out`.
    """
    rows = [row for row in declarations() if row.group == group and row.name != group]
    short = {row.name.removeprefix(f"{group}_"): row for row in rows}
    return tuple(
        _control_widget(name, row)
        for name, row in short.items()
        if name not in left_out and not row.control.webui_only and not row.control.listed
    )


def meant_values(group: str, values: dict[str, Any]) -> dict[str, Any]:
    """Public names and values of a group from the values of its widgets, the group switched on."""
    controls = {row.name: row.control for row in declarations()}
    named = {f"{group}_{name}": value for name, value in values.items()}
    return {group: True} | {name: controls[name].meant(value) for name, value in named.items()}


def _control_widget(name: str, row: Declaration) -> Input:
    control = row.control
    options: dict[str, Any] = {"default": row.default}
    if control.choices:
        kind = "COMBO"
        options["options"] = list(control.choices)
    elif row.kind is bool:
        kind = "BOOLEAN"
    elif row.kind in (int, float):
        kind = "INT" if row.kind is int else "FLOAT"
        lowest = 0 if control.automatic else control.minimum
        numbers = {"min": lowest, "max": control.maximum, "step": control.step}
        options |= {key: row.kind(number) for key, number in numbers.items()}
    else:
        kind = "STRING"
    return Input(name, kind, control.help, control.title, tuple(options.items()))
