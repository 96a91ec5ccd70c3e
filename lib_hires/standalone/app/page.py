"""The page of `hires app`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from lib_hires.presets import PURPOSES, preset_for
from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.app.controls import Controls, element_id
from lib_hires.standalone.app.events import Shown, choose, message, refused, waiting
from lib_hires.standalone.app.job import Job
from lib_hires.standalone.app.models import Models
from lib_hires.standalone.app.plan import plan_line, plan_markup
from lib_hires.standalone.app.queue import Line
from lib_hires.standalone.models.latent import ModelError
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.outputs import read_run
from lib_hires.standalone.pipeline.request import Request

MOST_WAITING = 16  # of the server's 40 threads; more wait where they cannot stop
KEPT = 60 * 60  # seconds that what was dropped into the page is kept


class Page:
    """The page, its models, and the jobs of those who look at it."""

    def __init__(self, models: Models, folder: Path) -> None:
        self._models, self._folder, self._line = models, folder, Line()
        self._stops: dict[str, threading.Event] = {}  # of who generates or waits, by their session
        self.blocks = gr.Blocks(
            title="HiRes Guidance", analytics_enabled=False, delete_cache=(KEPT, KEPT)
        )
        with self.blocks:
            self._build()
        self.blocks.queue(default_concurrency_limit=None, api_open=False)

    def _build(self) -> None:
        with gr.Row():
            with gr.Column():
                first = self._models.names[0]
                self._model = gr.Dropdown(
                    self._models.names, value=first, label="Model", elem_id=element_id("model")
                )
                self._preset = gr.Dropdown(
                    ["", *PURPOSES],
                    value="",
                    label="Preset",
                    info="Sets the groups below and the first image's size for this model.",
                    elem_id=element_id("preset"),
                )
                self._controls = Controls.made()
            with gr.Column(elem_classes="hires-guidance-beside"):
                self._models.get(first)
                self._figure = gr.HTML(self._plan(first), elem_classes="hires-guidance-figure")
                self._build_results()
        self._connect()

    def _build_results(self) -> None:
        with gr.Row():
            self._generate = gr.Button(
                "Generate", variant="primary", elem_id=element_id("generate")
            )
            self._stop = gr.Button("Stop", elem_id=element_id("stop"))
        self._status = gr.HTML(elem_id=element_id("status"))
        self._preview = gr.Image(
            label="Now", interactive=False, visible=False, elem_id=element_id("preview")
        )
        self._compare = gr.ImageSlider(
            label="Before and after", type="pil", elem_id=element_id("compare")
        )
        self._gallery = gr.Gallery(
            label="Images of this session", columns=4, elem_id=element_id("gallery")
        )
        self._about = gr.Code(
            label="Settings of the image", language="json", elem_id=element_id("about")
        )
        self._use = gr.Button("Use these settings", elem_id=element_id("use"))
        self._drop = gr.File(
            label="Drop an image here to use its settings",
            file_types=[".png"],
            elem_id=element_id("drop"),
        )
        self._session = gr.State([])  # paths of the images, newest first
        self._chosen = gr.State(None)  # the path of the one whose settings are shown

    def _connect(self) -> None:
        controls = self._controls.components
        results = [self._session, self._chosen, self._status, self._preview, self._compare]
        results += [self._gallery, self._about]
        quiet: dict[str, Any] = {"show_progress": "hidden"}
        waiting = quiet | {"concurrency_limit": MOST_WAITING}
        planned = [self._model, *controls]
        self._generate.click(self._run, [self._session, *planned], results, **waiting)
        self._model.change(self._load, planned, [self._figure, self._status], **waiting)
        gr.on(
            [component.change for component in controls],
            self._plan,
            planned,
            self._figure,
            trigger_mode="always_last",
            **quiet,
        )
        self._stop.click(self._stop_run, **quiet)
        chosen = [self._chosen, self._about, self._status]
        self._gallery.select(choose, self._session, chosen, **quiet)
        used = [self._status, *self._controls.repeating]
        used_here = self._use.click(self._use_settings, self._chosen, used, **quiet)
        size = [self._controls.request[name] for name in ("width", "height")]
        preset = self._preset.input(
            self._use_preset,
            [self._preset, self._model, *size],
            [self._preset, self._status, *self._controls.preset],
            **quiet,
        )
        dropped = self._drop.upload(self._use_dropped, self._drop, [self._drop, *used], **quiet)
        for event in (used_here, preset, dropped):  # which also set what is in closed groups
            event.then(self._plan, planned, self._figure, **quiet)

    def _run(
        self, request: gr.Request, session: list[str], model: str, *values: object
    ) -> Iterator[dict[Any, Any]]:
        """Wait for one's turn, generate, and show what comes."""
        visitor, stop = str(request.session_hash), threading.Event()
        self._stops[visitor] = stop
        try:
            with self._line.joined(stop) as place:
                for ahead in place.turns():
                    yield {self._status: message(waiting(ahead))}
                if stop.is_set():
                    yield {self._status: message("stopped before it began")}
                    return
                yield from self._shown(session, model, values, stop)
        finally:
            self._stops.pop(visitor, None)

    def _shown(
        self, session: list[str], model: str, values: Sequence[object], stop: threading.Event
    ) -> Iterator[dict[Any, Any]]:
        """Generate, and show what comes."""
        try:
            wanted, settings = self._controls.read(values)
            job = Job(Run(self._models.get(model), wanted, settings), self._folder, stop)
        except (SettingsError, ModelError) as error:
            yield {self._status: message(str(error))}
            return
        with TemporaryDirectory() as folder:
            shown = Shown(session, Path(folder))
            for event in job.events():
                yield {getattr(self, f"_{name}"): new for name, new in shown.after(event).items()}
        yield {self._preview: gr.update(visible=False)}

    def _stop_run(self, request: gr.Request) -> None:
        """The visitor's own run, whether it has begun or still waits."""
        stop = self._stops.get(str(request.session_hash))
        if stop is not None:
            stop.set()

    def _plan(self, name: str, *values: object) -> Any:
        """The plan of a run with the controls' values, by default their first ones."""
        model = self._models.known(name)
        if model is None:
            return plan_line("The plan is known once the model is loaded.")
        try:
            wanted = self._controls.read(values) if values else (Request(), Settings())
            return plan_markup(name, model, *wanted)
        except SettingsError as error:
            return plan_line(f"{error}.")

    def _load(self, name: str, *values: object) -> Iterator[tuple[Any, Any]]:
        """The plan with another model, which is loaded for it when nobody generates."""
        with self._line.joined(threading.Event()) as place:
            for _ in place.turns():
                yield gr.skip(), gr.skip()
            try:
                self._models.get(name)
                yield self._plan(name, *values), message("")
            except ModelError as error:
                yield self._plan(name, *values), message(str(error))

    def _use_preset(
        self, purpose: str, model: str, width: float | None, height: float | None
    ) -> list[Any]:
        """The list, free for the next choice, a message, the size and the settings."""
        known = self._models.known(model)
        if not purpose or known is None:
            text = "the model is not loaded yet; choose the preset again then" if purpose else ""
            return ["", message(text), *[gr.skip()] * len(self._controls.preset)]
        preset, size = preset_for(purpose, known.native), (int(height or 0), int(width or 0))
        values = self._controls.preset_values(preset, size, known.native, known.multiple)
        return ["", message(f"these are the settings of {purpose}"), *values]

    def _use_settings(self, path: str | None) -> list[Any]:
        """A message, and the controls as they were for the image."""
        unchanged = [gr.skip()] * len(self._controls.repeating)
        if path is None:
            return [message("choose an image first"), *unchanged]
        try:
            about = read_run(Path(path))
            values = self._controls.values(about)
        except SettingsError as error:
            return [refused(error), *unchanged]
        return [message(f"these are the settings of an image made with {about['model']}"), *values]

    def _use_dropped(self, path: str) -> list[Any]:
        """The same for an image that comes from elsewhere; the field is free for the next."""
        return [None, *self._use_settings(path)]
