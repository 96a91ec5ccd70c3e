"""The command `hires app`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lib_hires.settings import SettingsError
from lib_hires.standalone.cli.options import DTYPES, complain, say, slow_dtype


def add_app(commands: Any) -> None:
    """Add the command to those of `hires`."""
    parser = commands.add_parser("app", help="all of it in a browser, on this machine")
    parser.add_argument(
        "--model", type=Path, action="append", default=[], help="offer this one too; repeatable"
    )
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder (pictures)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860)")
    parser.add_argument(
        "--listen", metavar="ADDRESS", default="127.0.0.1", help="(default: this machine alone)"
    )
    parser.add_argument("--user", help="who may come in; needed with another --listen")
    parser.add_argument("--password", help="with which")
    parser.set_defaults(command=_app)


def _app(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.png import writable_folder

    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError:
        message = "app: gradio is missing; install it with pip install -e '.[app]'"
        raise SettingsError(message) from None
    from lib_hires.standalone.app.page import run_page

    writable_folder(options.out)
    if warning := slow_dtype(options.dtype, options.device):
        complain(warning)
    run_page(options, say=say)
    return 0
