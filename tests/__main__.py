"""All checks, as CI runs them: python -m tests; with --quick, what takes less than two minutes."""

import argparse
import os
import subprocess
import sys

CHECKS = (
    ["-m", "ruff", "check"],
    ["-m", "ruff", "format", "--check"],
    ["-m", "mypy"],
    ["-c", "from importlinter.cli import lint_imports_command as check; check()"],
)
QUICK = "not slow and not browser and not host"
MOST_WORKERS = 4  # each holds torch, diffusers and models: about 2 GB
HOSTS = "HIRES_WEBUI", "HIRES_WEBUIS", "HIRES_COMFYUI"  # each worker would start its own


def main(arguments: list[str] | None = None) -> int:
    """Run every check; the exit code is that of the first to fail, after all have run."""
    parser = argparse.ArgumentParser(prog="python -m tests", description=__doc__)
    text = "leave out tests that are slow, drive a browser or need a real WebUI"
    parser.add_argument("--quick", action="store_true", help=text)
    options = parser.parse_args(arguments)
    a_host = any(name in os.environ for name in HOSTS)
    workers = 1 if a_host else min((os.cpu_count() or 1) + 1, MOST_WORKERS)  # one often waits
    tests = ["-m", "pytest", "-q", "-n", str(workers), "--dist", "worksteal"]
    tests += ["-m", QUICK] if options.quick else []
    codes = [subprocess.run([sys.executable, *check]).returncode for check in (*CHECKS, tests)]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
