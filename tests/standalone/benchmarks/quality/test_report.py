"""The quality benchmark's report to read: table, plot and page."""

from __future__ import annotations

from pathlib import Path

from lib_hires.standalone.benchmarks.quality.report import _front, markdown, page, plot


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(1.0, 0.2), (2.0, 0.9), (2.0, 0.5), (3.0, 0.8), (4.0, 1.0)]
    assert _front(points, more_is_better=True) == [(1.0, 0.2), (2.0, 0.9), (4.0, 1.0)]
    assert _front(points, more_is_better=False) == [(1.0, 0.2)]


def test_the_report_is_a_table_in_markdown_too() -> None:
    how = {
        "sampler": "Euler",
        "schedule": "Karras",
        "steps": 4,
        "cfg": 5.0,
        "settings": {"ug": True},
    }
    report = [{"technique": "ug", "one_object": 0.5, "one_object_95": "0.2-0.8", "fid": None} | how]
    assert markdown(report).splitlines() == [
        "| technique | one object | fid | settings |",
        "| --- | --- | --- | --- |",
        "| ug | 0.5 (0.2-0.8) |  | ug=True Euler, Karras, 4 steps, CFG 5 |",
    ]
    report = [{"technique": "true_again", "octaves": [0.1, 0.25]}]
    assert markdown(report, ["blind"]).splitlines()[2:] == [
        "| true_again | 0.1 / 0.25 |  |",
        "",
        "- blind",
    ]


def test_nothing_is_plotted_of_nothing(tmp_path: Path) -> None:
    report = [{"technique": "ug", "seconds_per_picture": 1.0, "fid": None}]
    assert plot(report, tmp_path / "quality.png") is False
    assert not list(tmp_path.iterdir())


def test_the_page_has_table_notes_and_images_and_no_markup_of_others(tmp_path: Path) -> None:
    how = {"sampler": "Euler", "schedule": "Karras", "steps": 4, "cfg": 5.0, "settings": {}}
    report = [
        {"technique": name, "fid": fid, "fid_error": 0.1, "made_with": {"commit": "0"}} | how
        for name, fid in (("native", 2.5), ("a<b>", 1.5))
    ]
    images = [[tmp_path / "pictures" / "2x-a&b" / f"{seed}.png" for seed in (7, 8)]]
    page(report, images, tmp_path / "index.html", notes=["<i>left out</i>"])
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<p>&lt;i&gt;left out&lt;/i&gt;</p>" in text
    assert text.count("<h2>") == 1 and "<h2>a&lt;b&gt;</h2>" in text
    assert "<td>2.5 <small>± 0.1</small></td>" in text
    assert '<img loading="lazy" src="pictures/2x-a&amp;b/7.png" alt="seed 7">' in text
    assert "commit" not in text and "quality.png" not in text
    (tmp_path / "quality.png").touch()
    page(report, images, tmp_path / "index.html")
    assert 'src="quality.png"' in (tmp_path / "index.html").read_text(encoding="utf-8")
