"""Puts the stand-in for the WebUI where `modules` and `gradio` are looked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "fake_webui"))


@pytest.fixture
def host():
    """A fresh host; a lifecycle call that fails fails the test."""
    from host import Host
    from modules import scripts

    yield Host()
    assert scripts.errors == []
