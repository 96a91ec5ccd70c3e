"""Who may see the page of `hires app`, and what of this machine it serves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from app_page import Served, fetched

from lib_hires.settings import SettingsError

# Gradio's blocks and the browser's driver leave event loops and sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.mark.slow
def test_nothing_but_the_outputs_is_served(served: Served) -> None:
    served.folder.joinpath("served.txt").write_text("ours")
    assert fetched(served, served.folder / "served.txt") == 200
    for path in (Path(__file__), Path("pyproject.toml").resolve(), served.folder.parent):
        assert fetched(served, path) in (403, 404)


def test_the_working_folder_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_hires.standalone.app.serve import check_served

    monkeypatch.chdir(tmp_path)
    check_served(Path("pictures"))
    for folder in (Path(), Path(".."), tmp_path, Path("/")):
        with pytest.raises(SettingsError, match="--out: expected a folder for images alone"):
            check_served(folder)


def test_the_page_is_served_without_a_tunnel_whatever_the_environment_says(tmp_path: Path) -> None:
    from lib_hires.standalone.app.serve import serve

    given: dict[str, Any] = {}

    def launch(**options: Any) -> tuple[None, str, None]:
        given.update(options)
        return None, "http://here/", None

    page = SimpleNamespace(blocks=SimpleNamespace(launch=launch))
    assert serve(page, tmp_path, listen="::1", port=None, auth=None) == "http://here/"  # type: ignore[arg-type]
    assert given["share"] is False  # None is what GRADIO_SHARE would change
    assert given["allowed_paths"] == [str(tmp_path.resolve())]


def test_others_come_in_with_a_password_alone() -> None:
    from lib_hires.standalone.app.serve import visitors

    assert visitors("127.0.0.1", None, None) is None
    assert visitors("0.0.0.0", "ann", "secret") == ("ann", "secret")
    for address, user, password in [
        ("0.0.0.0", None, None),
        ("192.168.0.7", "ann", None),
        ("127.0.0.1", None, "secret"),
    ]:
        with pytest.raises(SettingsError, match="expected --user and --password"):
            visitors(address, user, password)
