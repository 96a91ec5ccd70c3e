"""`hires app`: everything in a browser, on this machine alone unless a visitor needs a password."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path

import gradio as gr
import torch

from lib_hires.settings import SettingsError
from lib_hires.standalone.app.models import Models
from lib_hires.standalone.app.page import Page
from lib_hires.standalone.models import Overrides
from lib_hires.standalone.pipeline.request import weighted_file

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SCRIPT, STYLE = "javascript/hires_guidance.js", "style.css"


def run_page(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted; options: of the command line.

    Raises SettingsError where others could reach the page without a password, or more than its
    images, and ModelError.
    """
    check_served(options.out)
    auth = visitors(options.listen, options.user, options.password)
    overrides = Overrides(options.prediction, options.zero_snr)
    loras = [weighted_file(text) for text in options.lora]
    models = Models(
        options.model,
        options.device,
        getattr(torch, options.dtype),
        overrides,
        motions=options.motion,
        loras=[(file, 1.0 if weight is None else weight) for file, weight in loras],
    )
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
