"""The command `hires` in two processes on the CPU, as accelerate's launcher starts them."""

from __future__ import annotations

import os
import subprocess
import sys

LAUNCH = "accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 "
LAUNCH += "--main_process_port=0 --mixed_precision=no --dynamo_backend=no --module"


def in_two_processes(*words: str, **options: object) -> str:
    """What `hires` says with these words and options; asserts that it succeeds."""
    named = (("--" + name.replace("_", "-"), str(value)) for name, value in options.items())
    done = subprocess.run(
        [
            *(sys.executable, "-m", *LAUNCH.split(), "lib_hires.standalone.cli", *words),
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
