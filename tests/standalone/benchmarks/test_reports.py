"""What stands in every report beside its rows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from lib_hires.standalone.benchmarks import reports
from lib_hires.standalone.benchmarks.reports import commit, write_report


def test_every_row_has_commit_hardware_versions_and_dtype(tmp_path: Path) -> None:
    rows = [{"name": "a"}, {"name": "b", "dtype": "float16"}]
    write_report(tmp_path / "report.json", rows, dtype=torch.bfloat16)
    rows = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in rows] == ["a", "b"]
    assert [row["made_with"]["dtype"] for row in rows] == ["bfloat16", "float16"]
    for row in rows:
        made = row["made_with"]
        assert made["device"] == "cpu"
        assert made["processor"] and made["cores"] >= 1 and made["threads"] >= 1
        assert made["versions"]["torch"] == torch.__version__
        assert made["commit"] == commit()


def test_the_commit_is_that_of_a_checkout_marked_where_files_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "_ROOT", tmp_path)
    assert commit() is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.example", "-C", str(tmp_path)]
    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "Begin"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert commit() == head.stdout.strip()
    (tmp_path / "other").write_text("not known to git")
    assert commit() == head.stdout.strip()
    (tmp_path / "file").write_text("2")
    assert commit() == head.stdout.strip() + "+"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(reports, "_ROOT", tmp_path)
    assert commit() is None  # an empty folder is no repository
    monkeypatch.setenv("PATH", "")
    assert commit() is None
