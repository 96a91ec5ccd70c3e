"""All checks, as CI runs them: python -m tests."""

import subprocess
import sys

CHECKS = (
    ["-m", "ruff", "check"],
    ["-m", "ruff", "format", "--check"],
    ["-m", "mypy"],
    ["-c", "from importlinter.cli import lint_imports_command as check; check()"],
    ["-m", "pytest", "-q"],
)


def main() -> int:
    """Run every check; the exit code is that of the first to fail, after all have run."""
    codes = [subprocess.run([sys.executable, *check]).returncode for check in CHECKS]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
