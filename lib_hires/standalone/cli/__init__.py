"""The command `hires`; heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib_hires.settings import NOTHING, declarations
from lib_hires.standalone.cli.app import add_app
from lib_hires.standalone.cli.benchmark import add_benchmarks
from lib_hires.standalone.cli.generate import add_generate
from lib_hires.standalone.cli.options import add_option, complain, let_print, say
from lib_hires.standalone.cli.train import add_trainings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 2 refused or failed with a message, 130 interrupted."""
    let_print()
    logging.basicConfig(format="hires: %(message)s")
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except ValueError as error:  # SettingsError and ModelError are among them
        return complain(str(error))
    except OSError as error:  # a name that is too long, a full disk
        place = "" if error.filename is None else f"{error.filename}: "
        return complain(f"{place}{error.strerror or error}")
    except KeyboardInterrupt:
        return complain("interrupted", 130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hires", description="Images above native size.")
    commands = parser.add_subparsers(required=True, metavar="command")
    add_generate(commands)
    add_app(commands)
    _add_demo(commands)
    add_trainings(commands)
    add_benchmarks(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="every technique side by side, bundled model")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder (default: demo)")
    rows = {row.name: row for row in declarations()}
    upsampler = rows["refine_upsampler"]
    add_option(demo, upsampler.name, upsampler.kind, upsampler.control, upsampler.default)
    demo.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.outputs import writable_folder

    writable_folder(options.out)
    from lib_hires.standalone.benchmarks.demo import demo

    say(demo(options.out, upsampler=getattr(options, "refine_upsampler", NOTHING)))
    return 0
