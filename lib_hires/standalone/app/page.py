"""`hires app`: everything in a browser, on this machine alone unless told otherwise."""

from __future__ import annotations

import argparse
import html
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import files
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image

from lib_hires.presets import PURPOSES, preset_for
from lib_hires.settings import SettingsError
from lib_hires.sizes import Size, count
from lib_hires.standalone.app.controls import Controls, drawing_element, element_id
from lib_hires.standalone.app.job import Ended, Job, Saved, Step
from lib_hires.standalone.app.queue import Line
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel, ModelError
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.png import read_about, read_run
from lib_hires.standalone.pipeline.results import folded

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SCRIPT, STYLE = "javascript/hires_guidance.js", "style.css"
BUNDLED = "bundled"
MOST_WAITING = 16  # of the server's 40 threads; more wait where they cannot stop
KEPT = 60 * 60  # seconds that what was dropped into the page is kept


class Models:
    """The models that the page offers by name, one of them loaded at a time."""

    def __init__(self, paths: Sequence[Path], device: str, dtype: torch.dtype) -> None:
        self._paths: dict[str, Path | None] = {BUNDLED: None}
        self._paths |= {str(path): path for path in paths}
        self._device, self._dtype = device, dtype
        self._loaded: tuple[str, LatentModel] | None = None
        self._sizes: dict[str, tuple[Size, int]] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Those given first, the bundled one last."""
        return [*list(self._paths)[1:], BUNDLED]

    def get(self, name: str) -> LatentModel:
        """Load a model, or give the one that is loaded. Raises ModelError."""
        with self._lock:
            if self._loaded is None or self._loaded[0] != name:
                self._loaded = None  # first make room
                model = load_model(self._paths[name], device=self._device, dtype=self._dtype)
                self._loaded = name, model
                self._sizes[name] = model.native, model.multiple
            return self._loaded[1]

    def sizes(self, name: str) -> tuple[Size, int] | None:
        """A model's native (height, width) and what sides are multiples of, in pixels.

        None for one that was never loaded.
        """
        return self._sizes.get(name)


class Page:
    """The page, its models, and the jobs of those who look at it."""

    def __init__(self, models: Models, folder: Path) -> None:
        self._models, self._folder, self._line = models, folder, Line()
        self._stops: dict[str, threading.Event] = {}  # of who paints or waits, by their session
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
                drawing = drawing_element(self._models.get(first))
                self._figure = gr.HTML(drawing, elem_classes="hires-guidance-figure")
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
        self._generate.click(
            self._paint, [self._session, self._model, *controls], results, **waiting
        )
        self._model.change(self._load, self._model, [self._figure, self._status], **waiting)
        self._stop.click(self._stop_run, **quiet)
        chosen = [self._chosen, self._about, self._status]
        self._gallery.select(_choose, self._session, chosen, **quiet)
        used = [self._status, *self._controls.repeating]
        self._use.click(self._use_settings, self._chosen, used, **quiet)
        size = [self._controls.request[name] for name in ("width", "height")]
        self._preset.input(
            self._use_preset,
            [self._preset, self._model, *size],
            [self._preset, self._status, *self._controls.preset],
            **quiet,
        )
        self._drop.upload(self._use_dropped, self._drop, [self._drop, *used], **quiet)

    def _paint(
        self, request: gr.Request, session: list[str], model: str, *values: object
    ) -> Iterator[dict[Any, Any]]:
        """Wait for one's turn, paint, and show what comes."""
        visitor, stop = str(request.session_hash), threading.Event()
        self._stops[visitor] = stop
        try:
            with self._line.joined(stop) as place:
                for ahead in place.turns():
                    yield {self._status: _said(_waiting(ahead))}
                if stop.is_set():
                    yield {self._status: _said("stopped before it began")}
                    return
                yield from self._shown(session, model, values, stop)
        finally:
            self._stops.pop(visitor, None)

    def _shown(
        self, session: list[str], model: str, values: Sequence[object], stop: threading.Event
    ) -> Iterator[dict[Any, Any]]:
        """Paint, and show what comes."""
        try:
            wanted, settings = self._controls.read(values)
            job = Job(Run(self._models.get(model), wanted, settings), self._folder, stop)
        except (SettingsError, ModelError) as error:
            yield {self._status: _said(str(error))}
            return
        shown = _Shown(session)
        for event in job.events():
            yield {getattr(self, f"_{name}"): new for name, new in shown.after(event).items()}
        yield {self._preview: gr.update(visible=False)}

    def _stop_run(self, request: gr.Request) -> None:
        """The visitor's own, whether it is being painted or still waits."""
        stop = self._stops.get(str(request.session_hash))
        if stop is not None:
            stop.set()

    def _load(self, model: str) -> Iterator[tuple[Any, Any]]:
        """The drawing of another model, which is loaded for it when nobody paints."""
        with self._line.joined(threading.Event()) as place:
            for _ in place.turns():
                yield gr.skip(), gr.skip()
            try:
                yield drawing_element(self._models.get(model)), _said("")
            except ModelError as error:
                yield gr.skip(), _said(str(error))

    def _use_preset(
        self, purpose: str, model: str, width: float | None, height: float | None
    ) -> list[Any]:
        """The list, free for the next choice, what there is to say, the size and the settings."""
        sizes = self._models.sizes(model)
        if not purpose or sizes is None:
            said = "the model is not loaded yet; choose the preset again then" if purpose else ""
            return ["", _said(said), *[gr.skip()] * len(self._controls.preset)]
        native, multiple = sizes
        size = int(height or 0), int(width or 0)
        values = self._controls.preset_values(preset_for(purpose, native), size, native, multiple)
        return ["", _said(f"these are the settings of {purpose}"), *values]

    def _use_settings(self, path: str | None) -> list[Any]:
        """The controls as they were for the image, and what there is to say."""
        unchanged = [gr.skip()] * len(self._controls.repeating)
        if path is None:
            return [_said("choose an image first"), *unchanged]
        try:
            about = read_run(Path(path))
            values = self._controls.values(about)
        except SettingsError as error:
            return [_refused(error), *unchanged]
        return [_said(f"these are the settings of an image made with {about['model']}"), *values]

    def _use_dropped(self, path: str) -> list[Any]:
        """The same for an image that comes from elsewhere; the field is free for the next."""
        return [None, *self._use_settings(path)]


class _Shown:
    """What a run shows, by the name of the component, as it goes on."""

    def __init__(self, session: Sequence[str]) -> None:
        self._earlier = session
        self._first: Image.Image | None = None
        self._saved: Saved | None = None

    def after(self, event: Step | Saved | Ended) -> dict[str, Any]:
        """What changes with an event."""
        if isinstance(event, Step):
            preview = {} if event.preview is None else {"preview": _visible(event.preview)}
            return {"status": _progress(event)} | preview
        if isinstance(event, Ended):
            kept = "" if self._saved is None else f"; {_stage_name(self._saved.stage)} is kept"
            return {"status": _said(f"{event.sentence}{kept}") + folded(event.record)}
        self._saved, self._first = event, self._first or event.image
        return self._images(event)

    def _images(self, saved: Saved) -> dict[str, Any]:
        paths = [str(path) for path in saved.paths]
        earlier = [path for path in self._earlier if Path(path).is_file()]
        session = paths + earlier
        before = self._first
        assert before is not None
        if saved.stage == 0 and earlier:  # one image alone: beside the one before it
            before = _opened(earlier[0]) or before
        done = saved.stage == saved.stages
        text = f'done in <span class="measurement">{saved.seconds:.1f} sec.</span>'
        return {
            "session": session,
            "gallery": session,
            "chosen": paths[0],
            "about": _about(paths[0]),
            "compare": (before.resize(saved.image.size), saved.image),
            **({"status": _paragraph(text) + folded(saved.record)} if done else {}),
        }


def _opened(path: str) -> Image.Image | None:
    """RGB; None where the file is no image any more, or larger than Pillow opens."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return None


def _choose(session: list[str], event: gr.SelectData) -> tuple[Any, Any, str]:
    """The image that was clicked on, its settings, and what there is to say."""
    path = session[event.index]
    try:
        return path, _about(path), _said("")
    except SettingsError as error:
        return gr.skip(), gr.skip(), _refused(error)


def _about(path: str) -> str:
    return json.dumps(read_about(Path(path)), indent=2, ensure_ascii=False)


def _visible(image: Image.Image) -> Any:
    return gr.update(value=image, visible=True)


def _progress(event: Step) -> str:
    of = f" of {event.stages}" if event.stage else ""
    words = f"{_stage_name(event.stage)}{of}, step {event.step} of {event.steps}"
    return _paragraph(f'{words} <progress value="{event.step}" max="{event.steps}"></progress>')


def _waiting(ahead: int) -> str:
    return f"waiting for {count(ahead, 'run')} of others"


def _stage_name(stage: int) -> str:
    return f"stage {stage}" if stage else "the first image"


def _said(text: str) -> str:
    return _paragraph(html.escape(text))


def _refused(error: SettingsError) -> str:
    return _said(str(error).removeprefix("--from: "))


def _paragraph(markup: str) -> str:
    return f'<p role="status">{markup}</p>'


def run_page(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted; options: of the command line.

    Raises SettingsError where others could reach the page without a password, or more than its
    images, and ModelError.
    """
    check_served(options.out)
    auth = visitors(options.listen, options.user, options.password)
    models = Models(options.model, options.device, getattr(torch, options.dtype))
    page = Page(models, options.out)
    address = serve(page, options.out, listen=options.listen, port=options.port, auth=auth)
    say(f"the page is at {address} (Ctrl+C ends it)")
    page.blocks.block_thread()


def head() -> str:
    """The drawing's script and style, as they are for the WebUI."""
    script, style = (page_part(part).read_text(encoding="utf-8") for part in (SCRIPT, STYLE))
    return f"<script>{script}</script><style>{style}</style>"


def page_part(path: str) -> Path:
    """A file that the WebUI wants in a clone's top folder; an installed package has it among its
    data files (pyproject.toml)."""
    cloned = Path(__file__).parents[3] / path
    if cloned.is_file():
        return cloned
    installed = [file for file in files("hires-guidance") or [] if file.name == Path(path).name]
    if not installed:
        raise SettingsError(f"app: {path} is missing; install hires-guidance again")
    return Path(str(installed[0].locate()))


def visitors(listen: str, user: str | None, password: str | None) -> tuple[str, str] | None:
    """Who may come in: everyone on this machine, or else only one who knows the password."""
    if user and password:
        return user, password
    if user or password or listen not in LOOPBACK:
        raise SettingsError(
            f"app: expected --user and --password with --listen {listen}, so that not everyone "
            "comes in"
        )
    return None


def check_served(folder: Path) -> None:
    """Raises SettingsError where serving the folder serves the working folder too."""
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise SettingsError(
            f"--out: expected a folder for images alone, for the page serves all that is in it, "
            f"got {folder}, which is the current folder or around it"
        )


def serve(
    page: Page, folder: Path, *, listen: str, port: int | None, auth: tuple[str, str] | None
) -> str:
    """Start serving in the background, and return the page's address."""
    try:
        _, address, _ = page.blocks.launch(
            server_name=listen,
            server_port=port,
            auth=auth,
            share=False,  # whatever the environment says
            allowed_paths=[str(folder.resolve())],
            head=head(),
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            footer_links=[],
            max_file_size="64mb",
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise SettingsError(f"app: cannot listen on {listen}, port {port}: {error}") from None
    return str(address)
