"""The command `hires` in two processes on the CPU, as accelerate's launcher starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

from lib_hires.standalone.benchmarks.processes import fresh_processes
from lib_hires.standalone.cli import main

LAUNCH = "accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 "
LAUNCH += "--mixed_precision=no --dynamo_backend=no"


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def in_two_processes(*words: str, **options: object) -> str:
    """What `hires` says with these words and options; asserts that it succeeds."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", *LAUNCH.split(), "--main_process_port", free_port()),
            *("--module", "lib_hires.standalone.cli", *words),
            *_as_words(options),
        ],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def in_two_forks(folder: Path, *words: str, **options: object) -> str:
    """The same without the launcher, which starts Python anew: with what torch reads from it.

    `folder` keeps what each process says; asserts that both succeed.
    """
    torch_reads = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    torch_reads |= {"LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    said = [folder / "0.txt", folder / "1.txt"]
    forks = [
        fresh_processes().Process(
            target=_run,
            args=([*words, *_as_words(options)], torch_reads | _rank(number), said[number]),
        )
        for number in range(2)
    ]
    for fork in forks:
        fork.start()
    for fork in forks:
        fork.join(600)
    assert [fork.exitcode for fork in forks] == [0, 0]
    return "".join(path.read_text() for path in said)


def _as_words(options: Mapping[str, object]) -> list[str]:
    named = (("--" + name.replace("_", "-"), str(value)) for name, value in options.items())
    return [word for pair in named for word in pair]


def _rank(number: int) -> dict[str, str]:
    return {"RANK": str(number), "LOCAL_RANK": str(number)}


def _run(words: list[str], environment: Mapping[str, str], said: Path) -> None:
    os.environ.update(environment)
    with said.open("w") as stream, redirect_stdout(stream):
        code = main(words)
    sys.exit(code)
