"""A real WebUI for the tests: started in a data folder of its own, driven through its API, stopped.

HIRES_WEBUI: the WebUI's folder, with its `repositories`. HIRES_WEBUI_PYTHON: the Python that runs
it; without it `venv/bin/python` in that folder. The folder itself is not written to.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOR_THE_CPU = shlex.split(
    "--skip-prepare-environment --skip-python-version-check --skip-torch-cuda-test "
    "--skip-version-check --use-cpu all --no-half --precision full --do-not-download-clip "
    "--no-download-sd-model --opt-sdp-attention --api"
)
# A request's own options are put back only where the WebUI has saved ones.
SAVED_OPTIONS = {
    "always_discard_next_to_last_sigma": False,
    "batch_cond_uncond": True,
    "eta_noise_seed_delta": 0,
    "hires_guidance_native_size": 0,
    "img2img_fix_steps": False,
    "pad_cond_uncond": False,
    "randn_source": "GPU",
    "sgm_noise_multiplier": False,
    "skip_early_cond": 0.0,
}


@dataclass(frozen=True)
class Answer:
    """What the API gave back."""

    images: tuple[Any, ...]  # PIL
    info: str  # the PNG info's last line
    encoded: tuple[str, ...]

    @property
    def pixels(self) -> tuple[bytes, ...]:
        return tuple(image.tobytes() for image in self.images)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [image.size for image in self.images]


class WebUI:
    """A running WebUI."""

    native = 128  # what the tests tell it, so that pictures of 256x256 are above it

    def __init__(self, port: int, model: Path) -> None:
        """model: the safetensors file that it has loaded, native size 256x256."""
        self._url = f"http://127.0.0.1:{port}"
        self.model = model

    def request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data, headers)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def paint(
        self,
        settings: dict[str, Any] | list[Any] | None = None,
        *,
        fault: tuple[str, int] | None = None,
        kind: str = "txt2img",
        options: dict[str, Any] | None = None,
        **request: Any,
    ) -> Answer:
        """Make pictures; settings by names or positions. Raises where the WebUI fails."""
        assert (options or {}).keys() <= {*SAVED_OPTIONS, "sd_model_checkpoint"}
        scripts: dict[str, Any] = {}
        if settings is not None:
            args = settings if isinstance(settings, list) else [settings]
            scripts["HiRes Guidance"] = {"args": args}
        if fault is not None:
            scripts["HiRes test faults"] = {"args": list(fault)}
        body = {
            "prompt": "a red circle on grass",
            "negative_prompt": "blue",
            "steps": 6,
            "width": 256,
            "height": 256,
            "seed": 1,
            "cfg_scale": 5,
            "sampler_name": "Euler",
            "alwayson_scripts": scripts,
            "override_settings": {"hires_guidance_native_size": self.native} | (options or {}),
        }
        answer = self.request(f"/sdapi/v1/{kind}", body | request)
        return _answer(answer)

    def state(self) -> Any:
        return self.request("/hires-test/state")


def _answer(answer: dict[str, Any]) -> Answer:
    from PIL import Image

    encoded = tuple(answer["images"])
    images = tuple(Image.open(io.BytesIO(base64.b64decode(image))) for image in encoded)
    info = json.loads(answer["info"])["infotexts"][0].split("\n")[-1]
    return Answer(tuple(image.convert("RGB") for image in images), info, encoded)


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    if "HIRES_WEBUI" not in os.environ:
        pytest.skip("HIRES_WEBUI names no WebUI folder")
    folder = Path(os.environ["HIRES_WEBUI"])
    python = os.environ.get("HIRES_WEBUI_PYTHON", str(folder / "venv/bin/python"))
    data = tmp_path_factory.mktemp("webui")
    (data / "config.json").write_text(json.dumps(SAVED_OPTIONS))
    _install_extension(data / "extensions")
    model = _put_model(data / "models" / "Stable-diffusion")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "launch.py", *FOR_THE_CPU, "--port", str(port), "--data-dir", str(data)]
    command += ["--ckpt", str(model)]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log_path = data / "log.txt"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | offline, stdout=log, stderr=log
        )
        try:
            _wait_until_started(process, log_path)
            yield WebUI(port, model)
        finally:
            process.terminate()
            process.wait(30)


def _install_extension(extensions: Path) -> None:
    """The extension as a clone would lie there, and the one that makes faults."""
    ours = extensions / "hires-guidance"
    for part in ("lib_hires", "scripts"):
        shutil.copytree(ROOT / part, ours / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "install.py", ours)
    faults = extensions / "hires-test-faults" / "scripts"
    faults.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("faults.py"), faults)


def _put_model(folder: Path) -> Path:
    """A model of random weights in the bundled one's shape, but narrower, for speed."""
    import torch

    from lib_hires.standalone import demo_model

    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_model, "UNET_CHANNELS", 32)
        patch.setattr(demo_model, "UNET_HEADS", 1)
        patch.setattr(demo_model, "VAE_CHANNELS", 32)
        torch.manual_seed(0)
        parts = {
            "vae": demo_model.build_vae(),
            "unet": demo_model.build_unet(),
            "text_encoder": demo_model.build_text_encoder(),
        }
        file = demo_model.export(folder, **parts)
    for config in folder.glob("*.yaml"):
        clip = folder / demo_model.CLIP_FOLDER
        config.write_text(config.read_text().replace(demo_model.WEBUI_CLIP, str(clip)))
    _put_variants(file)
    return file


def _put_variants(file: Path) -> None:
    """`other`, of other weights, and `inpaint`, whose U-Net takes a mask and a masked picture."""
    import torch
    from safetensors.torch import load_file, save_file

    config, weights = file.with_suffix(".yaml").read_text(), load_file(file)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    other = weights | {first: -weights[first]}
    extra = torch.randn(len(weights[first]), 5, 3, 3) / 10
    inpaint = weights | {first: torch.cat([weights[first], extra.half()], 1)}
    inpaint_config = config.replace("in_channels: 4", "in_channels: 9")
    inpaint_config = inpaint_config.replace("key: crossattn", "key: hybrid")
    for name, state, text in (("other", other, config), ("inpaint", inpaint, inpaint_config)):
        save_file(state, file.with_name(f"{name}.safetensors"), metadata={"format": "pt"})
        file.with_name(f"{name}.yaml").write_text(text)


def _wait_until_started(process: subprocess.Popen[bytes], log: Path) -> None:
    """Requests before this line of the log would end the WebUI."""
    for _ in range(600):
        if "Startup time:" in log.read_text():
            return
        if process.poll() is not None:
            break
        time.sleep(0.5)
    raise RuntimeError("the WebUI did not start:\n" + log.read_text()[-4000:])
