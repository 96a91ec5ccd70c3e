"""Puts the stand-in for the WebUI where `modules` and `gradio` are looked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes" / "webui"))
sys.modules.pop("gradio", None)  # the real one, which the tests of the page have imported

import gradio as stand_in  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def gradio_is_the_stand_in() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gradio", stand_in)
        yield


@pytest.fixture
def host():
    """A fresh host; a lifecycle call that fails fails the test."""
    from host import Host
    from modules import scripts

    yield Host()
    assert scripts.errors == []


@pytest.fixture
def data(tmp_path):
    """The host's data folder, empty."""
    from modules import paths_internal

    paths_internal.data_path = str(tmp_path)
    return tmp_path
