"""A WebUI that is installed on this machine, and the options with which it starts for the tests."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

AS_IT_IS = shlex.split(
    "--skip-prepare-environment --skip-python-version-check --skip-torch-cuda-test "
    "--skip-version-check --no-download-sd-model --api"
)
FOR_THE_CPU = shlex.split(
    "--use-cpu all --no-half --precision full --do-not-download-clip --opt-sdp-attention"
)
PATCHED_FOR_THE_CPU = (  # of those hosts, by the first option that they know
    ["--always-cpu", "--disable-xformers"],
    ["--cpu", "--force-fp32", "--disable-xformers"],
)
PARSERS = "modules/cmd_args.py", "backend/args.py", "ldm_patched/modules/args_parser.py"
BACKENDS = "backend", "ldm_patched"  # the folders in which Forge and reForge have theirs


@dataclass(frozen=True)
class Installation:
    """A WebUI's folder and the Python that runs it, "" for that of the folder's own environment."""

    folder: Path
    python: str = ""

    @classmethod
    def named(cls, text: str) -> Installation:
        """text: FOLDER or FOLDER=PYTHON."""
        folder, _, python = text.partition("=")
        return cls(Path(folder), python)

    @property
    def by_shape(self) -> bool:
        """Forge and reForge load models of the usual shapes alone."""
        return any((self.folder / backend).is_dir() for backend in BACKENDS)

    def knows(self, option: str) -> bool:
        """Whether the WebUI has that option of the command line."""
        files = filter(Path.is_file, (self.folder / file for file in PARSERS))
        return any(f'"{option}"' in file.read_text("utf8") for file in files)

    def for_the_cpu(self) -> list[str]:
        if not self.by_shape:
            return FOR_THE_CPU
        return next(options for options in PATCHED_FOR_THE_CPU if self.knows(options[0]))
