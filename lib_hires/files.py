"""Files that are written whole or not at all, whoever else writes them; and what files hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

CHUNK = 1 << 20  # bytes


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which replaces it at the end.

    A process that is ended before leaves the older file as it was, and an error leaves no partial
    file. Processes and threads that write the same file do not see each other's.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sha256_of(files: Iterable[Path]) -> str:
    """SHA-256 of files' contents one after another, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
