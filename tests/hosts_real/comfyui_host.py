"""A real ComfyUI inside its own Python, for comfyui_checks.py and comfyui_models.py.

Their arguments: HOST ROOT EXCHANGE [CHECK ...]. HOST: ComfyUI's folder. ROOT: this repository,
loaded as the host loads a folder of custom_nodes. EXCHANGE: a folder with `given.safetensors`
(cond, uncond, first latents of the standalone side) and `given.json`; `seen.json` is written there.
"""

import asyncio
import json
import logging
import os
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

HOST, ROOT, EXCHANGE, *CHOSEN = sys.argv[1:]
sys.argv = ["main.py"]
sys.path.insert(0, HOST)
os.chdir(HOST)

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.model_detection  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from comfy.model_base import ModelType  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

torch.set_num_threads(1)
comfy.utils.PROGRESS_BAR_ENABLED = False
assert asyncio.run(nodes.load_custom_node(ROOT)), "the host did not load the nodes"

from lib_hires.resample import Reduction  # noqa: E402

GIVEN = load_file(f"{EXCHANGE}/given.safetensors")
SETTINGS = json.loads(Path(EXCHANGE, "given.json").read_text())
BUNDLED = Path(ROOT, "lib_hires", "standalone", "bundled", "hires-demo.safetensors")
WEIGHTS = load_file(BUNDLED)
UNET = "model.diffusion_model."
POSITIVE, NEGATIVE = ([[GIVEN[name], {}]] for name in ("cond", "uncond"))
LARGE, SMALL = (64, 64), (32, 32)
REDUCTION = Reduction.between(LARGE, SMALL)
SIGMAS = torch.tensor([9.0, 3.0, 0.8, 0.0])
CHECKS = {}


def check(function):
    """A function of a script, whose result goes into `seen.json` under its name."""
    CHECKS[function.__name__] = function
    return function


def main():
    """Make the chosen checks of the script, or all; a failed one gives its traceback."""
    logging.getLogger("hires_guidance").setLevel(logging.ERROR)
    seen = {"version": __import__("comfyui_version").__version__}
    seen["nodes"] = sorted(n for n in nodes.NODE_CLASS_MAPPINGS if n.startswith("HiRes"))
    with torch.inference_mode():
        for name in CHOSEN or CHECKS:
            try:
                seen[name] = CHECKS[name]()
            except Exception:
                seen[name] = traceback.format_exc()[-1500:]
            Path(EXCHANGE, "seen.json").write_text(json.dumps(seen, indent=1))


@contextmanager
def messages():
    """A list that is filled with our warnings inside the scope."""
    log, lines = logging.getLogger("hires_guidance"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.WARNING)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def node(name, **inputs):
    """The outputs of one of our nodes, its widgets at their defaults but for `inputs`."""
    cls = nodes.NODE_CLASS_MAPPINGS[name]
    widgets = cls.INPUT_TYPES()["required"].items()
    defaults = {key: part[1]["default"] for key, part in widgets if "default" in part[1]}
    return run(cls, **{**defaults, **inputs})


def run(cls, **inputs):
    """The outputs of a host's node of either API."""
    if hasattr(cls, "define_schema"):
        return cls.EXECUTE_NORMALIZED(**inputs).args
    return getattr(cls(), cls.FUNCTION)(**inputs)


def host_model(kind=ModelType.V_PREDICTION, weights=WEIGHTS):
    """The bundled network with the host's parametrisation of a kind; weights: others of its shape.

    It may have channels for inpainting.
    """

    class Bundled(comfy.supported_models.SD15):
        unet_extra_config = {"num_heads": 3, "num_head_channels": -1}  # noqa: RUF012

        def model_type(self, state_dict, prefix=""):
            return kind

    config = Bundled(comfy.model_detection.detect_unet_config(weights, UNET))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(weights, UNET, device="cpu")
    model.load_model_weights(dict(weights), UNET)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def host_vae():
    prefix = "first_stage_model."
    weights = {k.removeprefix(prefix): v for k, v in WEIGHTS.items() if k.startswith(prefix)}
    config = yaml.safe_load(BUNDLED.with_suffix(".yaml").read_text())["model"]["params"]
    params = {
        name: config["first_stage_config"]["params"][name] for name in ("ddconfig", "embed_dim")
    }
    return comfy.sd.VAE(sd=weights, config={"params": params}, dtype=torch.float32)


def guided(model, **settings):
    return node("HiResUpsampleGuidance", model=model, **{"native": 256, **settings})[0]


def sample(model, sigmas, noise, name="euler", positive=POSITIVE, negative=NEGATIVE, cfg=3.0):
    return comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        comfy.samplers.sampler_object(name),
        sigmas,
        positive,
        negative,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=1,
    )


def off_native(model, name="euler", positive=POSITIVE, small_positive=None, sigmas=SIGMAS):
    """How far D of the guided trajectory's end is from the native run's end; relative."""
    noise = noise_of(LARGE)
    large = sample(guided(model), sigmas, noise, name, positive)
    gain = REDUCTION.noise_gain
    native = sample(
        model, sigmas * gain, REDUCTION.reduce(noise) / gain, name, small_positive or positive
    )
    plain = sample(model, sigmas, noise, name, positive)
    scale = native.abs().max()
    assert (REDUCTION.reduce(plain) - native).abs().max() / scale > 1e-2, "nothing is guided"
    return float((REDUCTION.reduce(large) - native).abs().max() / scale)


def noise_of(size, seed=3):
    return torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(seed))
