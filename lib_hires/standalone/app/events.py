"""What the page shows of a run, event by event, and its messages as HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import gradio as gr
from PIL import Image

from lib_hires.settings import SettingsError
from lib_hires.sizes import count
from lib_hires.standalone.app.job import Ended, Saved, Step
from lib_hires.standalone.pipeline.outputs import folded, read_about


class Shown:
    """What a run shows, by the name of the component, as it goes on.

    folder: where images are written that the page shows. Gradio copies such a file once for each
    content; an image that it receives as such it writes anew each time, over the file of the same
    content that a browser may be loading.
    """

    def __init__(self, session: Sequence[str], folder: Path) -> None:
        self._earlier, self._folder = session, folder
        self._first: Image.Image | None = None
        self._saved: Saved | None = None

    def after(self, event: Step | Saved | Ended) -> dict[str, Any]:
        """What changes with an event."""
        if isinstance(event, Step):
            return {"status": _progress(event)} | self._preview(event)
        if isinstance(event, Ended):
            kept = "" if self._saved is None else f"; {_stage_name(self._saved.stage)} is kept"
            status = message(f"{event.message}{kept}") + folded(event.record)
            return {"status": status} | ({} if self._saved is None else self._files(self._saved))
        self._saved, self._first = event, self._first or event.image
        if event.stage < event.stages:
            return self._compared(event)
        text = f'done in <span class="measurement">{event.seconds:.1f} sec.</span>'
        status = _paragraph(text) + folded(event.record)
        return self._compared(event) | self._files(event) | {"status": status}

    def _preview(self, step: Step) -> dict[str, Any]:
        if step.preview is None:
            return {}
        return {"preview": gr.update(value=self._written(step.preview), visible=True)}

    def _compared(self, saved: Saved) -> dict[str, Any]:
        """The first image beside the newest; one alone beside the one before it."""
        before = self._first
        assert before is not None
        earlier = self._earlier_files()
        if saved.stage == 0 and earlier:
            before = _opened(earlier[0]) or before
        pair = before.resize(saved.image.size), saved.image
        return {"compare": tuple(self._written(image) for image in pair)}

    def _written(self, image: Image.Image) -> str:
        path = self._folder / f"{uuid4().hex}.png"
        image.save(path, compress_level=1)
        return str(path)

    def _files(self, saved: Saved) -> dict[str, Any]:
        """The files of a run that is over: a stage writes over the one before it, which a browser
        must not be loading then."""
        paths = [str(path) for path in saved.paths]
        session = paths + self._earlier_files()
        return {
            "session": session,
            "gallery": session,
            "chosen": paths[0],
            "about": _about(paths[0]),
            "clip": player(paths[0]),
        }

    def _earlier_files(self) -> list[str]:
        return [path for path in self._earlier if Path(path).is_file()]


def _opened(path: str) -> Image.Image | None:
    """RGB; None where the file is no image any more, or larger than Pillow opens."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return None


def choose(session: list[str], event: gr.SelectData) -> tuple[Any, Any, str, Any]:
    """The image that was clicked on, its settings, a message, and what plays it if it is a clip."""
    path = session[event.index]
    try:
        return path, _about(path), message(""), player(path)
    except SettingsError as error:
        return gr.skip(), gr.skip(), refused(error), gr.skip()


def player(path: str) -> str:
    """The HTML that plays a clip, again and again; empty for an image."""
    address = f"gradio_api/file={quote(path)}"
    if path.endswith(".mp4"):
        return f'<video src="{address}" autoplay loop muted playsinline controls></video>'
    return f'<img src="{address}" alt="the clip">' if path.endswith(".webp") else ""


def _about(path: str) -> str:
    return json.dumps(read_about(Path(path)), indent=2, ensure_ascii=False)


def _progress(event: Step) -> str:
    of = f" of {event.stages}" if event.stage else ""
    words = f"{_stage_name(event.stage)}{of}, step {event.step} of {event.steps}"
    return _paragraph(f'{words} <progress value="{event.step}" max="{event.steps}"></progress>')


def waiting(ahead: int) -> str:
    return f"waiting for {count(ahead, 'run')} of others"


def _stage_name(stage: int) -> str:
    return f"stage {stage}" if stage else "the first image"


def message(text: str) -> str:
    return _paragraph(html.escape(text))


def refused(error: SettingsError) -> str:
    return message(str(error).removeprefix("--from: "))


def _paragraph(markup: str) -> str:
    return f'<p role="status">{markup}</p>'
