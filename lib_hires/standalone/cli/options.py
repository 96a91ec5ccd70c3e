"""What the commands of `hires` share: controls as options, and output that cannot raise."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

from lib_hires.settings import Control
from lib_hires.standalone.pipeline.request import Request

DTYPES = ("float32", "float16", "bfloat16")
PREDICTIONS = ("eps", "v")


def add_request_options(group: Any, names: Sequence[str]) -> None:
    """The controls of a request that have these names."""
    for name, kind, control, attribute in Request.rows():
        if name in names:
            add_option(group, name, kind, control, getattr(Request(), attribute))


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """What the user knows better than a model's files."""
    text = "what the U-Net predicts, in the place of what its files state"
    parser.add_argument("--prediction", choices=PREDICTIONS, help=text)
    text = "whether its noise schedule ends in pure noise (zero terminal SNR), likewise"
    action = argparse.BooleanOptionalAction
    parser.add_argument("--zero-snr", action=action, default=None, help=text)


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


def warn_slow(dtype: str, device: str) -> None:
    """Warn where a CPU has no units for a dtype that the user chooses."""
    if dtype == "float32" or device.partition(":")[0] != "cpu":
        return
    import torch

    from lib_hires.standalone.models.precision import slow_message

    if message := slow_message(getattr(torch, dtype)):
        complain(message)


class Console(io.TextIOBase):
    """A stream that raises nothing when it is closed, full, absent or lacks a letter.

    Progress bars, logging and argparse write to the streams themselves, so these are replaced: an
    image must not be lost because its progress could not be shown.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """stream: None as under pythonw, or where a shell has closed it."""
        self._stream: Any = io.TextIOBase() if stream is None else stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return bool(self._stream.isatty())
        return False

    def fileno(self) -> int:
        return int(self._stream.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]  # the base class has a plain attribute
        return self._stream.encoding or "utf-8"


def let_print() -> None:
    """Make the process's streams such that writing cannot raise."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Console):
            setattr(sys, name, Console(getattr(sys, name)))


def say(text: str) -> None:
    """The result of a command, on stdout."""
    _write(sys.stdout, text)


def write_error(text: str) -> None:
    """What accompanies the result, on stderr."""
    _write(sys.stderr, text)


def complain(message: str, code: int = 2) -> int:
    """What went wrong, on stderr; returns the exit code."""
    write_error(f"hires: {message}")
    return code


def _write(stream: TextIO | None, text: str) -> None:
    console = Console(stream)
    console.write(text + "\n")
    console.flush()
