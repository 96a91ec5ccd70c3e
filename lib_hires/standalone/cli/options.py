"""What the commands of `hires` share: controls as options, and what is said."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from lib_hires.settings import Control
from lib_hires.standalone.pipeline.request import Request

DTYPES = ("float32", "float16", "bfloat16")


def add_request_options(group: Any, names: Sequence[str]) -> None:
    """The controls of a request that have these names."""
    for name, kind, control, attribute in Request.rows():
        if name in names:
            add_option(group, name, kind, control, getattr(Request(), attribute))


def add_option(group: Any, name: str, kind: type, control: Control, default: object) -> None:
    """One control as an option; absent where it is not given, so that --from shows through."""
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        action = argparse.BooleanOptionalAction
        text = f"{control.help} (default: {'on' if default else 'off'})"
        group.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
        return
    choices = f" {', '.join(control.choices)}." if control.choices else ""
    text = f"{control.help}{choices} (default: {default})".replace("%", "%%")
    group.add_argument(flag, metavar="VALUE", default=argparse.SUPPRESS, help=text)


def names_in(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def say(text: str) -> None:
    """What the command is asked for, on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(sentence: str, code: int = 2) -> int:
    """What went wrong, on stderr; returns the exit code."""
    sys.stderr.write(f"hires: {sentence}\n")
    return code
