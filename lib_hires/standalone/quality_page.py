"""The quality benchmark's report for the eye: quality against time, and a page of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Report = Sequence[Mapping[str, Any]]

MEASURES = {  # of a row, and what to write at the axis
    "one_object": "share with one object",
    "fd_whole": "Frechet distance, whole",
    "fd_crop": "Frechet distance, crops",
}

LOOKS = [
    {"marker": marker, "color": f"C{colour}"} for marker in "osD^v" for colour in range(10)
]  # of the marks

STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color-scheme: light dark; }
table { border-collapse: collapse; display: block; overflow-x: auto; white-space: nowrap; }
body > img { max-width: 100%; }
td, th { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
section div { display: flex; gap: 4px; overflow-x: auto; }
section img { width: 192px; height: 192px; }
"""


def plot(report: Report, path: Path) -> None:
    """Each measure against seconds a picture, a mark a technique; the best ones lie to the left.

    The bars are standard errors. The native pictures are left out, for they are not of the size
    that is measured.
    """
    rows = [row for row in report if row["technique"] not in ("true", "native")]
    figure = Figure(figsize=(5.2 * len(MEASURES), 5.2), layout="constrained")
    every_axes = figure.subplots(1, len(MEASURES))
    for axes, (measure, name) in zip(every_axes, MEASURES.items(), strict=True):
        axes.set(xlabel="seconds a picture", ylabel=name)
        for row, style in zip(rows, cycle(LOOKS)):
            bar = row.get(f"{measure}_error")
            axes.errorbar(
                row["seconds_per_picture"],
                row[measure],
                bar,
                **style,
                linestyle="",
                elinewidth=0.6,
                label=row["technique"],
            )
    figure.legend(*every_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=110)


def page(report: Report, pictures: Mapping[str, Sequence[Path]], path: Path) -> None:
    """An HTML page beside the pictures: the table, the plot, and every picture by technique.

    pictures: the files of each technique, below the folder of `path`.
    """
    columns = [name for name in report[0] if name != "settings"]
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = ["".join(f"<td>{_text(row[name])}</td>" for name in columns) for row in report]
    table = f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
    sections = [
        f"<section><h2>{escape(name)}</h2><div>{_images(files, path.parent)}</div></section>"
        for name, files in pictures.items()
    ]
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title>Quality</title><style>{STYLE}</style>"
        f'<h1>Quality</h1>{table}<img src="quality.png" alt="quality against seconds">'
        + "".join(sections)
    )


def _text(value: Any) -> str:
    return "" if value is None else escape(str(value))


def _images(files: Sequence[Path], folder: Path) -> str:
    return "".join(
        f'<a href="{source}"><img loading=lazy src="{source}" alt="seed {file.stem}"></a>'
        for file in files
        for source in [escape(file.relative_to(folder).as_posix())]
    )
