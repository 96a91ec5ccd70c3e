"""Files and folders that several processes write at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lib_hires.files import whole_file
from lib_hires.standalone.pipeline.outputs import writable_folder


def test_a_file_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_text("old")
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_older_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), whole_file(path) as partial:
        partial.write_text("ne")
        raise OSError("full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with whole_file(path) as first:
        with whole_file(path) as second:
            first.write_text("first")
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_many_check_at_once_whether_a_folder_can_be_written(tmp_path: Path) -> None:
    """As the processes of one launch do."""
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: writable_folder(tmp_path / "out"), range(400)))
    assert set(folders) == {tmp_path / "out"}
    assert not any((tmp_path / "out").iterdir())
