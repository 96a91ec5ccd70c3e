"""The browser of the pages' tests: an installed Chromium, with no network of its own."""

from __future__ import annotations

import os
import shutil

CHROMIUM = (
    os.environ.get("HIRES_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
