"""How a benchmark's report is written: its rows, each with what they were measured with."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lib_hires.settings import SettingsError

PACKAGES = ("hires-guidance", "diffusers", "transformers", "k-diffusion", "numpy")
MADE_WITH = "made_with"  # the key in each row

_ROOT = Path(__file__).parents[3]


def claim_folders(
    notes: Mapping[Path, Mapping[str, Any]],
    what: str,
    as_written_now: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> None:
    """Write into each folder how what is in it is made, so that it can be added to later.

    notes: by their files. what: the folder holds, where its note is another, for the message.
    as_written_now: brings an earlier version's note to the present form.
    Raises SettingsError, before anything is written, where a note is there and is another.
    """
    for path, made in notes.items():
        if path.exists() and as_written_now(json.loads(path.read_text())) != made:
            raise SettingsError(f"--out: {path.parent} holds {what}; give another folder")
    for path, made in notes.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made, indent=1) + "\n")


def write_report(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
) -> None:
    """Write the rows as JSON, each with `made_with` this process.

    dtype: of the rows that have none of their own.
    """
    made = made_with(dtype, device)
    noted = [{**row, MADE_WITH: made | {"dtype": row.get("dtype", made["dtype"])}} for row in rows]
    text = json.dumps(noted, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def made_with(dtype: torch.dtype, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The commit where this is a checkout, the hardware, the versions and the dtype."""
    made: dict[str, Any] = {
        "commit": commit(),
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": dict(_versions()) | {"torch": torch.__version__},
    }
    if torch.device(device).type == "cuda":
        made["card"] = torch.cuda.get_device_name(device)
    return made


def commit() -> str | None:
    """The checkout's commit, with a plus where its files were changed; None elsewhere."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "HEAD")
        return head + "+" * bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):  # no git, or not its owner's folder
        return None


def _git(*words: str) -> str:
    command = ["git", "-C", str(_ROOT), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def _versions() -> Iterable[tuple[str, str | None]]:
    yield "python", platform.python_version()
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, None


def _processor() -> str:
    """The processor's name, as Linux has it or else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
