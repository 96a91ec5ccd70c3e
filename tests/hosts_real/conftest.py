"""A real WebUI for the tests: started in a data folder of its own, driven through its API, stopped.

HIRES_WEBUI: the WebUI's folder, AUTOMATIC1111's, Forge's or reForge's, with its `repositories`.
HIRES_WEBUI_PYTHON: the Python that runs it; without it `venv/bin/python` in that folder.
HIRES_ANIMATEDIFF: for test_real_webui_animatediff.py, the folder of sd-webui-animatediff.
HIRES_WEBUIS: for test_hosts_agree.py, several WebUIs, each as FOLDER or FOLDER=PYTHON, with the
system's path separator between them (`:`, on Windows `;`). The folders are not written to.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from compatibility import partly, pytest_runtest_makereport
from installations import AS_IT_IS, Installation

__all__ = ["partly", "pytest_runtest_makereport"]

ROOT = Path(__file__).parents[2]
CONTROLNET, BUILT_IN = "sd-webui-controlnet", "sd_forge_controlnet"
LOG = "log.txt"
PLOT = "x/y/z plot"
TOKENIZERS = (  # and CLIP's tokenizer
    "backend/huggingface/runwayml/stable-diffusion-v1-5/tokenizer",
    "ldm_patched/modules/sd1_tokenizer",
)
SOLVERS = "bosh3", "fehlberg2", "adaptive_heun", "dopri5", "custom"
# A request's own options are put back only where the WebUI has saved ones.
SAVED_OPTIONS = {
    "always_discard_next_to_last_sigma": False,
    "batch_cond_uncond": True,
    "enable_quantization": False,
    "eta_noise_seed_delta": 0,
    "hires_guidance_native_size": 0,
    "hires_guidance_upscaler": "None",
    # reForge's adaptive solvers, as short as they may be
    **{f"ode_{name}_{of}": 0 for name in SOLVERS for of in ("rtol", "atol")},
    "img2img_fix_steps": False,
    "pad_cond_uncond": False,
    "randn_source": "GPU",
    "sd_text_encoder": "None",  # in reForge: the checkpoint's own
    "sgm_noise_multiplier": False,
    "show_progress_type": "Approx cheap",  # the preview of SDXL's latents would want a download
    "skip_early_cond": 0.0,
    "VERSION_UID": "PY313",  # without it Forge Neo waits for a key
}


@dataclass(frozen=True)
class Response:
    """What the API gave back."""

    images: tuple[Any, ...]  # PIL
    info: str  # the PNG info's last line
    encoded: tuple[str, ...]
    infos: list[str]  # of every image

    @property
    def pixels(self) -> tuple[bytes, ...]:
        return tuple(image.tobytes() for image in self.images)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [image.size for image in self.images]


class WebUI:
    """A running WebUI."""

    def __init__(self, port: int, model: Path, log: Path, controlled: str, by_shape: bool) -> None:
        """model: the safetensors file that it has loaded. controlled: the name of a model that
        ControlNet's `tiny` is for, "" without ControlNet. by_shape: whether it loads models of
        known shapes alone, as Forge and its kin."""
        self.url = f"http://127.0.0.1:{port}"
        self.model = model
        self.log = log
        self.by_shape = by_shape
        self.side = 64 if by_shape else 256  # of an image in pixels
        self.native = self.side // 2  # as the tests set it
        self.controlled = controlled
        self.has_controlnet = bool(controlled)

    def times(self, factor: float) -> tuple[int, int]:
        """(width, height) of an image that many times as wide as one of the tests'."""
        return int(self.side * factor), int(self.side * factor)

    def request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)

    def generate(
        self,
        settings: dict[str, Any] | list[Any] | None = None,
        *,
        fault: tuple[str, int] | None = None,
        more_scripts: dict[str, Any] | None = None,
        kind: str = "txt2img",
        options: dict[str, Any] | None = None,
        **request: Any,
    ) -> Response:
        """Make images; settings by names or positions. Raises where the WebUI fails.

        more_scripts: arguments of other always-on scripts by their titles.
        """
        assert (options or {}).keys() <= {*SAVED_OPTIONS, "sd_model_checkpoint"}
        scripts = {title: {"args": args} for title, args in (more_scripts or {}).items()}
        if settings is not None:
            args = settings if isinstance(settings, list) else [settings]
            scripts["HiRes Guidance"] = {"args": args}
        if fault is not None:
            scripts["HiRes test faults"] = {"args": list(fault)}
        body = {
            "prompt": "a red circle on grass",
            "negative_prompt": "blue",
            "steps": 6,
            "width": self.side,
            "height": self.side,
            "seed": 1,
            "cfg_scale": 5,
            "sampler_name": "Euler",
            "alwayson_scripts": scripts,
            "hr_additional_modules": ["Use same choices"],  # Forge's own, without a default
            "hr_cfg_scale": 5,  # Forge Classic's own, without a default
            "override_settings": {"hires_guidance_native_size": self.native} | (options or {}),
        }
        response = self.request(f"/sdapi/v1/{kind}", body | request)
        return _response(response)

    def plot_axes(self) -> list[str]:
        """What an axis of the X/Y/Z plot can be."""
        choices = self._plot_args()[0]["choices"]
        return [choice if isinstance(choice, str) else choice[0] for choice in choices]  # Gradio 4

    def plot(self, *axes: tuple[str, str]) -> dict[str, Any]:
        """Of a request, the part for a plot with its single images. axes: X, Y and Z, each as
        what it is and its values with commas between them."""
        names = self.plot_axes()
        chosen = {f"{letter} type": 0 for letter in "XYZ"}
        chosen |= {"Include Sub Images": True, "Use text inputs instead of dropdowns": True}
        values = [chosen.get(arg["label"], arg["value"]) for arg in self._plot_args()]
        for place, (name, text) in enumerate(axes):
            values[3 * place : 3 * place + 2] = names.index(name), text
        return {"script_name": PLOT, "script_args": values}

    def _plot_args(self) -> list[dict[str, Any]]:
        infos = self.request("/sdapi/v1/script-info")
        args: list[dict[str, Any]] = next(
            info["args"] for info in infos if info["name"] == PLOT and not info["is_img2img"]
        )
        return args

    def scripts(self) -> set[str]:
        """The titles of all scripts, in lower case."""
        return {info["name"] for info in self.request("/sdapi/v1/script-info")}

    def hires_upscaler(self) -> str:
        """For Hires. fix: one of latents, or of pixels where the WebUI has no other. None is plain
        Lanczos in Forge Neo of August 2026, which has neither of the others."""
        places = "latent-upscale-modes", "upscalers"
        lists = [self.request(f"/sdapi/v1/{place}") for place in places]
        known = {one["name"] for listed in lists for one in listed}
        return next(name for name in ("Latent", "Lanczos", "None") if name in known)

    def state(self) -> Any:
        return self.request("/hires-test/state")

    def traced(self) -> list[dict[str, Any]]:
        """t, x and prediction of each evaluation of the last run that traced, as tensors."""
        import torch

        found = self.request("/hires-test/evaluations")
        return [
            {name: torch.tensor(one[name]) for name in ("t", "x", "prediction")} for one in found
        ]

    def rows(self) -> list[tuple[int, int]]:
        """(rows, latent height) of each evaluation since the run that recorded."""
        found = self.request("/hires-test/evaluations")
        return [(one["rows"], one["size"][0]) for one in found]

    def evaluations(self) -> list[tuple[tuple[int, int], Any]]:
        """(latent size, size that SDXL received) of each evaluation since the run that recorded."""
        found = self.request("/hires-test/evaluations")
        return [(tuple(one["size"]), one["received"]) for one in found]


def _response(response: dict[str, Any]) -> Response:
    from PIL import Image

    encoded = tuple(response["images"])
    images = tuple(Image.open(io.BytesIO(base64.b64decode(image))) for image in encoded)
    infos = [text.split("\n")[-1] for text in json.loads(response["info"])["infotexts"]]
    return Response(tuple(image.convert("RGB") for image in images), infos[0], encoded, infos)


@pytest.fixture
def any_shape(host: WebUI) -> None:
    """For tests with models of shapes that no published one has."""
    if host.by_shape:
        pytest.skip("this WebUI loads models of known shapes alone, see test_every_host.py")


@pytest.fixture(scope="session")
def installation() -> Installation:
    """Of HIRES_WEBUI."""
    if "HIRES_WEBUI" not in os.environ:
        pytest.skip("HIRES_WEBUI names no WebUI folder")
    python = os.environ.get("HIRES_WEBUI_PYTHON", "")
    return Installation(Path(os.environ["HIRES_WEBUI"]), python)


@pytest.fixture(scope="session")
def host(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """The WebUI, whichever it is."""
    from tiny_checkpoints import (
        put_known_models,
        put_lora,
        put_models,
        put_upsamplers,
        put_upscaler,
    )

    data = tmp_path_factory.mktemp("webui")
    _install_extension(data / "extensions")
    known = installation.by_shape
    put = put_known_models if known else put_models
    model = put(data / "models" / "Stable-diffusion")
    put_lora(model, data / "models" / "Lora" / "tiny.safetensors")
    put_upscaler(data / "models" / "ESRGAN" / "tiny-4x.pth")
    put_upsamplers(data / "models" / "hires-guidance", known=known)
    controlled = _install_controlnet(installation.folder, data, model)
    _install_animatediff(data)
    with _running(installation, data, model) as port:
        yield WebUI(port, model, data / LOG, controlled, known)


@pytest.fixture
def generate(host: WebUI) -> Callable[..., Response]:
    """Images of 64x64 with a native size of 32, and the model's evaluations for them."""

    def generate(settings: Any = None, **request: Any) -> Response:
        small = {"width": 64, "height": 64, "steps": 4}
        native = {"options": {"hires_guidance_native_size": 32}}
        return host.generate(settings, **(small | native | request))

    return generate


@pytest.fixture(scope="session")
def plain_url(
    installation: Installation, host: WebUI, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of the same WebUI without this extension."""
    with _running(installation, tmp_path_factory.mktemp("plain"), host.model) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def webuis(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Callable[[], AbstractContextManager[WebUI]]]:
    """What starts each WebUI of HIRES_WEBUIS, by its folder. All have the same models."""
    if "HIRES_WEBUIS" not in os.environ:
        pytest.skip("HIRES_WEBUIS names no WebUIs")
    from tiny_checkpoints import put_known_models, put_upsamplers

    names = os.environ["HIRES_WEBUIS"].split(os.pathsep)
    installations = [Installation.named(name) for name in names]
    folders = {each.folder for each in installations}
    assert len(folders) == len(names) > 1, f"HIRES_WEBUIS: expected several folders, got {names}"
    models = tmp_path_factory.mktemp("shared") / "models"
    model = put_known_models(models / "Stable-diffusion")
    _put_tokenizer(installations, model)
    put_upsamplers(models / "hires-guidance", known=True)
    return {
        str(one.folder): partial(_started, one, tmp_path_factory.mktemp("one"), model)
        for one in installations
    }


@contextmanager
def _started(installation: Installation, data: Path, model: Path) -> Iterator[WebUI]:
    """A WebUI whose models are those around `model`, without ControlNet."""
    _install_extension(data / "extensions")
    (data / "models").symlink_to(model.parents[1])
    with _running(installation, data, model) as port:
        yield WebUI(port, model, data / LOG, "", installation.by_shape)


def _put_tokenizer(installations: list[Installation], model: Path) -> None:
    """A1111 reads the tokenizer that lies beside the model; the others have their own."""
    from lib_hires.standalone.world.model import CLIP_FOLDER

    folders = [one.folder / place for one in installations for place in TOKENIZERS]
    for folder in filter(Path.is_dir, folders):
        shutil.copytree(folder, model.with_name(CLIP_FOLDER), dirs_exist_ok=True)


@contextmanager
def _running(installation: Installation, data: Path, model: Path) -> Iterator[int]:
    """Starts the WebUI in a data folder, gives its port, and ends it."""
    folder = installation.folder
    python = installation.python or str(folder / "venv/bin/python")
    saved = SAVED_OPTIONS | {"sd_model_checkpoint": model.name}
    (data / "config.json").write_text(json.dumps(saved))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"--port": port, "--data-dir": data}
    if installation.knows("--ckpt"):  # else the saved option names it
        places["--ckpt"] = model
    places["--gradio-allowed-path"] = folder  # for Forge's own scripts, with such a data folder
    command = [python, "launch.py", *AS_IT_IS, *installation.for_the_cpu()]
    command += [str(part) for option in places.items() for part in option]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    offline["IGNORE_CMD_ARGS_ERRORS"] = "1"  # Forge Neo has no --no-download-sd-model
    with (data / LOG).open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | offline, stdout=log, stderr=log
        )
        try:
            _wait_until_started(process, data / LOG)
            yield port
        finally:
            process.terminate()
            process.wait(30)


def _install_extension(extensions: Path) -> None:
    """The extension as a clone would lie there, and the one that makes faults."""
    ours = extensions / "hires-guidance"
    for part in ("javascript", "lib_hires", "scripts"):
        shutil.copytree(ROOT / part, ours / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("install.py", "style.css"):
        shutil.copy(ROOT / file, ours)
    faults = extensions / "hires-test-faults" / "scripts"
    faults.mkdir(parents=True)
    for file in ("faults.py", "small_shapes.py"):
        shutil.copy(Path(__file__).with_name(file), faults)


def _install_controlnet(webui: Path, data: Path, model: Path) -> str:
    """The WebUI's own ControlNet, where it has one, and a small model for it.

    Returns the name of the checkpoint that it is for, "" without ControlNet.
    """
    from tiny_checkpoints import put_controlnet

    installed, built_in = webui / "extensions" / CONTROLNET, webui / "extensions-builtin" / BUILT_IN
    if built_in.is_dir():
        controlled = model
    elif installed.is_dir():
        controlled = model.with_name("control.safetensors")
        ignored = shutil.ignore_patterns("__pycache__", ".git", "samples", "tests", "example")
        shutil.copytree(installed, data / "extensions" / CONTROLNET, ignore=ignored)
    else:
        return ""
    put_controlnet(controlled, data / "models" / "ControlNet" / "tiny.safetensors")
    return controlled.stem


def _install_animatediff(data: Path) -> None:
    """The extension of HIRES_ANIMATEDIFF, where it is set, and a small motion module."""
    from tiny_checkpoints import put_motion

    if "HIRES_ANIMATEDIFF" in os.environ:
        place = data / "extensions" / "sd-webui-animatediff"
        ignored = shutil.ignore_patterns("__pycache__", ".git", "docs")
        shutil.copytree(os.environ["HIRES_ANIMATEDIFF"], place, ignore=ignored)
        put_motion(place / "model" / "tiny.safetensors")


def _wait_until_started(process: subprocess.Popen[bytes], log: Path) -> None:
    """Requests before this line of the log would end the WebUI."""
    for _ in range(1800):
        if "Startup time:" in log.read_text():
            return
        if process.poll() is not None:
            break
        time.sleep(0.5)
    raise RuntimeError("the WebUI did not start:\n" + log.read_text()[-4000:])
