"""The command `hires app`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lib_hires.settings import SettingsError
from lib_hires.standalone import bundled
from lib_hires.standalone.cli.options import DTYPES, add_loras, add_overrides, say, warn_slow


def add_app(commands: Any) -> None:
    """Add the command to those of `hires`."""
    parser = commands.add_parser("app", help="all of it in a browser, on this machine")
    parser.add_argument(
        "--model", type=Path, action="append", default=[], help="offer this one too; repeatable"
    )
    text = "offer each model with this motion module too, for clips; repeatable; without FILE the "
    text += "bundled model's"
    parser.add_argument(
        "--motion",
        metavar="FILE",
        type=Path,
        action="append",
        nargs="?",
        const=bundled.MOTION,
        default=[],
        help=text,
    )
    add_loras(parser)
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder (pictures)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    add_overrides(parser)
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860)")
    parser.add_argument(
        "--listen", metavar="ADDRESS", default="127.0.0.1", help="(default: this machine alone)"
    )
    parser.add_argument("--user", help="who may come in; needed with another --listen")
    parser.add_argument("--password", help="with which")
    parser.set_defaults(command=_app)


def _app(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.outputs import writable_folder

    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError:
        message = "app: gradio is missing; install it with pip install -e '.[app]'"
        raise SettingsError(message) from None
    from lib_hires.standalone.app.serve import run_page

    writable_folder(options.out)
    warn_slow(options.dtype, options.device)
    run_page(options, say)
    return 0
