"""The command `hires` in two processes on the CPU, as accelerate's launcher starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

LAUNCH = "accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 "
LAUNCH += "--mixed_precision=no --dynamo_backend=no"


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def in_two_processes(*words: str, **options: object) -> str:
    """What `hires` says with these words and options; asserts that it succeeds."""
    named = (("--" + name.replace("_", "-"), str(value)) for name, value in options.items())
    done = subprocess.run(
        [
            *(sys.executable, "-m", *LAUNCH.split(), "--main_process_port", free_port()),
            *("--module", "lib_hires.standalone.cli", *words),
            *(word for pair in named for word in pair),
        ],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
