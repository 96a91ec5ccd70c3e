"""The quality benchmark's report to read: a table, quality against seconds, a page of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from lib_hires.standalone.benchmarks.quality.calibration import ROWS as CALIBRATION
from lib_hires.standalone.benchmarks.reports import MADE_WITH

Report = Sequence[Mapping[str, Any]]

MEASURES = {  # of a row: what to write at the axis, and whether more is better
    "one_object": ("share with one object", True),
    "gap_closed": ("share of the gap closed", True),
    "kd_crop": ("kernel distance of crops", False),
    "fid": ("FID", False),
    "patch_fid": ("FID of native-size crops", False),
    "clip_score": ("CLIP score", True),
}

UNITS = {"memory_mib": "memory, MiB", "model_evaluations": "evaluations"}  # other heads than names

STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color-scheme: light dark; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .35rem; text-align: right; border-bottom: 1px solid #8884; }
td { white-space: nowrap; }
small { opacity: .7; }
th { vertical-align: bottom; }
tr > :first-child { position: sticky; left: 0; background: Canvas; text-align: left; }
body > img { max-width: 100%; margin: 1rem 0; }
section div { display: flex; gap: 4px; overflow-x: auto; }
section img { width: 192px; height: 192px; }
"""


# --- table ----------------------------------------------------------------------------------------


def table(report: Report) -> Iterator[str]:
    """The report as text, a line per technique with its settings at the end."""
    names = _columns(report)
    lines = [names, *([" ".join(_cell(row, name)) for name in names] for row in report)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line, row in zip(lines, [{}, *report], strict=True):
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        yield "  ".join([*cells, _settings_text(row)]).rstrip()


def markdown(report: Report, notes: Sequence[str] = ()) -> str:
    """The same as a table for a page in Markdown, and below it the notes as a list."""
    names = _columns(report)
    rows = [[*_heads(names), "settings"], ["---"] * (len(names) + 1)]
    rows += [
        [*(" ".join(_cell(row, name)).strip() for name in names), _settings_text(row)]
        for row in report
    ]
    below = "".join(f"- {note}\n" for note in notes)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + (below and f"\n{below}")


HOW = ("settings", "sampler", "schedule", "steps", "cfg", MADE_WITH)
"""Of a row, what its images were made with; it stands at the end of a line."""


def _columns(report: Report) -> list[str]:
    """Those of the table: an error or an interval stands beside what it belongs to."""
    beside = ("_error", "_95")
    return [name for name in report[0] if not name.endswith(beside) and name not in HOW]


def _heads(names: Sequence[str]) -> list[str]:
    return [UNITS.get(name, name).replace("_", " ") for name in names]


def _cell(row: Mapping[str, Any], name: str) -> tuple[str, str]:
    """A value, and how sure it is."""
    value, error = row.get(name), row.get(f"{name}_error")
    interval = row.get(f"{name}_95")
    sure = f"({interval})" if interval else "" if error is None else f"± {error}"
    if isinstance(value, list):
        return " / ".join(map(str, value)), sure
    return "" if value is None else str(value), sure


def _settings_text(row: Mapping[str, Any]) -> str:
    if not row.get("sampler"):
        return ""
    parts = [f"{name}={value}" for name, value in row["settings"].items()]
    sampling = "{sampler}, {schedule}, {steps} steps, CFG {cfg:g}".format(**row)
    return " ".join([*parts, sampling])


# --- plot -----------------------------------------------------------------------------------------


def plot(report: Report, path: Path) -> bool:
    """Each measure against seconds an image, a numbered dot a technique; better ones lie higher.

    The line is the front: no technique on it is beaten in both. The bars are standard errors. The
    native images are left out, for they are not of the size that is measured. Returns whether
    there is anything to plot.
    """
    rows = [row for row in report if row["technique"] not in (*CALIBRATION, "native")]
    shown = [name for name in MEASURES if any(row.get(name) is not None for row in rows)]
    if not shown:
        path.unlink(missing_ok=True)  # of an earlier call
        return False
    columns = 5
    height = 5.6 + 0.2 * -(-len(rows) // columns)
    figure = Figure(dpi=110, figsize=(5.4 * len(shown), height), layout="constrained")
    every_axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, name in zip(every_axes, shown, strict=True):
        _dots(axes, rows, name)
    handles, labels = every_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    figure.draw_without_rendering()  # places everything, so that the numbers find theirs
    for axes, name in zip(every_axes, shown, strict=True):
        _numbers(axes, rows, name, figure.dpi)
    figure.savefig(path)
    return True


def _dots(axes: Axes, rows: Report, name: str) -> None:
    title, more_is_better = MEASURES[name]
    axes.set(xlabel="seconds an image", ylabel=title)
    if not more_is_better:
        axes.invert_yaxis()
    for number, row in enumerate(rows, start=1):
        axes.errorbar(
            row["seconds_per_picture"],
            row[name],
            row.get(f"{name}_error"),
            marker="o",
            markersize=5,
            color=f"C{number % 10}",
            linestyle="",
            elinewidth=0.3,
            label=f"{number} {row['technique']}",
        )
    front = _front([(row["seconds_per_picture"], row[name]) for row in rows], more_is_better)
    axes.plot(*zip(*front, strict=True), color="gray", linewidth=1, zorder=0)


Point = tuple[float, float]  # seconds, measure


def _front(points: Sequence[Point], more_is_better: bool) -> list[Point]:
    """Those that no other beats in both, by seconds."""
    sign = -1 if more_is_better else 1
    front: list[Point] = []
    for seconds, value in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * value < sign * front[-1][1]:
            front.append((seconds, value))
    return front


DIRECTIONS = ((0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7), (1, 0), (-1, 0), (0, 1), (0, -1))
OFFSETS = [(far * x, far * y) for far in range(8, 64, 8) for x, y in DIRECTIONS]
"""Of a number from its dot, in points, the nearest first."""


def _numbers(axes: Axes, rows: Report, name: str, dpi: float) -> None:
    """Write each dot's number where it covers neither a dot nor another number."""
    pixels = dpi / 72  # in a point
    points = [(row["seconds_per_picture"], row[name]) for row in rows]
    dots = [axes.transData.transform(point) for point in points]
    taken = [_around(dot, 3 * pixels, 3 * pixels) for dot in dots]
    for number, (point, (x, y)) in enumerate(zip(points, dots, strict=True), start=1):
        wide = 3 * len(str(number))
        for offset in OFFSETS:
            centre = x + offset[0] * pixels, y + offset[1] * pixels
            box = _around(centre, wide * pixels, 4 * pixels)
            inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
            if inside and not box.count_overlaps(taken):
                break
        taken.append(box)
        axes.annotate(
            str(number),
            point,
            offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "linewidth": 0.3, "shrinkA": 0, "shrinkB": 2},
        )


def _around(centre: Sequence[float], wide: float, high: float) -> Bbox:
    """The box that reaches so far from its centre."""
    x, y = centre
    return Bbox.from_extents(x - wide, y - high, x + wide, y + high)


# --- page -----------------------------------------------------------------------------------------

TEMPLATE = """\
<!doctype html>
<meta charset="utf-8">
<title>Quality</title>
<style>{{ style }}</style>
<h1>Quality</h1>
{% for note in notes %}
<p>{{ note }}</p>
{% endfor %}
<div class="table"><table>
<tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in rows %}
<tr>{% for value, sure in row %}<td>{{ value }} <small>{{ sure }}</small></td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% if plotted %}
<img src="quality.png" alt="quality against seconds">
{% endif %}
{% for section in sections %}
<section><h2>{{ section.title }}</h2><p>{{ section.settings }}</p><div>
{% for image in section.images %}
<a href="{{ image.source }}">
<img loading="lazy" src="{{ image.source }}" alt="seed {{ image.seed }}"></a>
{% endfor %}
</div></section>
{% endfor %}
"""


def page(
    report: Report,
    images: Sequence[Sequence[Path]],
    path: Path,
    notes: Sequence[str] = (),
) -> None:
    """An HTML page beside the images: the table, the plot, and every image by technique.

    images: the files of each of the last rows, below the folder of `path`. The plot is shown
    where it is there, as quality.png.
    """
    columns = _columns(report)
    sections = [
        {
            "title": row["technique"],
            "settings": _settings_text(row),
            "images": [
                {"source": file.relative_to(path.parent).as_posix(), "seed": file.stem}
                for file in files
            ],
        }
        for row, files in zip(report[-len(images) :], images, strict=True)
    ]
    template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE)
    text = template.render(
        style=Markup(STYLE),
        notes=notes,
        heads=_heads(columns),
        rows=[[_cell(row, name) for name in columns] for row in report],
        plotted=path.with_name("quality.png").is_file(),
        sections=sections,
    )
    path.write_text(text, encoding="utf-8")
