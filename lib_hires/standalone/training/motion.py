"""The stage `motion` of `hires train-demo`: a motion module for the bundled model, which is frozen.

Clips of the moving world are drawn once, encoded frame by frame by the model's own VAE and kept.
The module learns on them what the model predicts: all frames of a clip at one time, with noise of
their own. It begins by changing nothing (AnimateDiff, arXiv:2307.04725), so the first clip is so
many images. Of the two modules on the way up each level only the first is trained, so that the file
stays below 3 MB. Noisy times are learned most: there the frames agree on where things are, and a
clip whose frames do not agree is cut into several.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from tqdm import tqdm

from lib_hires.files import whole_file
from lib_hires.noise import per_image
from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.models.latent import LatentModel, hash_of_weights
from lib_hires.standalone.models.motion import skip_others, with_adapter
from lib_hires.standalone.models.motion.files import HEADS, silent, write_motion
from lib_hires.standalone.models.precision import fast_autocast
from lib_hires.standalone.pipeline.generate import FPS, Run
from lib_hires.standalone.pipeline.outputs import save_clip
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.training.diffusion import stratified, timesteps
from lib_hires.standalone.training.loop import Panel, Progress, averaged, computed_in, plot
from lib_hires.standalone.training.stages import StageConfig, run_stage
from lib_hires.standalone.world import model as demo
from lib_hires.standalone.world.motion import FRAMES, draw_clip, random_clip

NAME = f"{demo.NAME}-motion"
CHUNK = 10  # clips in a file
POSITIONS = 2 * FRAMES  # so that a clip of twice the rate has some
SHOWN = "a red car on sand under a clear sky"


@dataclass(frozen=True)
class MotionConfig(StageConfig):
    """What decides how the module comes out."""

    minutes: float = 90.0
    clips: int = 2000
    batch: int = 2
    rate: float = 1e-3
    caption_dropout: float = 0.1
    frames: int = FRAMES

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise SettingsError(f"--motion-clips: expected at least 1, got {self.clips}")


def train(work: Path, out: Path, model: LatentModel, config: MotionConfig | None = None) -> Path:
    """Train a motion module for `model` into `out`/hires-demo-motion.safetensors, returned.

    Resumable: clips and checkpoint lie in `work`, under a name of the model's weights, so that
    another model begins anew.
    """
    config = config or MotionConfig()
    key = _key_of(model, config)
    torch.manual_seed(config.seed)
    rng = np.random.default_rng([config.seed, 5])
    clips = encode_clips(work / f"clips-{key}", model, config)
    moving = with_adapter(model, new_adapter(model), NAME, config.frames, ours=True)
    modules = trained_modules(moving.unet)
    skip_others(moving.unet, modules)
    learning = nn.ModuleDict({_key(name): module for name, module in modules.items()})
    learning.requires_grad_(True)
    averages = {"motion": averaged(learning, config.ema)}
    demo.speed_up(moving.unet)
    # With both a clip takes 2.0 seconds of a CPU, without them 2.8.
    moving.unet.set_attn_processor(AttnProcessor())
    contexts = Contexts(moving)

    def loss_of(_: Progress) -> Tensor:
        x0, captions = clips.batch(rng, config.batch, config.caption_dropout)
        return loss(moving, x0, contexts(captions))

    def look(step: int) -> None:
        averaged_ = _adapter_of(model, averages["motion"].module)
        seen = with_adapter(model, averaged_, NAME, config.frames, ours=True)
        (stage,) = Run(seen, Request(prompt=SHOWN), Settings()).generate()
        path = work / "samples" / f"motion-{step:06d}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_clip(stage.images[0], path, {"step": step}, FPS)

    progress = run_stage(
        "motion", work / f"motion-{key}.pt", config, config.minutes, rates={"motion": config.rate},
        parts={"motion": learning}, averages=averages, rng=rng, loss_of=loss_of, look=look,
    )  # fmt: skip
    path = out / f"{NAME}.safetensors"
    write_motion(path, _adapter_of(model, averages["motion"].module), config.frames, list(modules))
    _write_record(out / "motion-training.json", model, config, progress, len(clips))
    plot(out / "motion-loss.png", [Panel("motion module", {"": progress.curve()}, scale="linear")])
    return path


def _key_of(model: LatentModel, config: MotionConfig) -> str:
    """Of all that clips and checkpoint depend on and that does not change as training goes on."""
    networks = model.vae, model.unet, *(encoder.model for encoder in model.encoders)
    key = hash_of_weights(*(network.state_dict() for network in networks))
    return f"{key[:8]}-{config.seed}-{config.frames}"


def loss(model: LatentModel, x0: Tensor, context: Tensor) -> Tensor:
    """Mean squared error of the prediction on clips x0 (b, c, f, h, w), noised as they were
    learned; context (b, n, d)."""
    t = noisy_times(len(x0))
    abar = per_image(model.alphas_cumprod.to(x0)[t], x0.ndim)
    a, s = abar.sqrt(), (1 - abar).sqrt()
    noise = torch.randn_like(x0)
    with fast_autocast():
        predicted = model.predict(a * x0 + s * noise, t, context=context)
    wanted = noise if model.prediction == "eps" else a * noise - s * x0
    return F.mse_loss(predicted.float(), wanted)


def noisy_times(n: int) -> Tensor:
    """(n,) timesteps, each as often as it is large: half of them lie above 0.7 of the largest."""
    return timesteps(stratified(n).sqrt())


# --- the modules ----------------------------------------------------------------------------------


def new_adapter(model: LatentModel) -> Any:
    """An adapter for the model's U-Net that changes nothing yet."""
    from diffusers import MotionAdapter

    config = model.unet.config
    return silent(
        MotionAdapter(
            block_out_channels=tuple(config.block_out_channels),
            motion_layers_per_block=config.layers_per_block,
            motion_num_attention_heads=HEADS,
            motion_max_seq_length=POSITIONS,
            use_motion_mid_block=True,
        )
    )


def trained_modules(network: Any) -> dict[str, nn.Module]:
    """Those of an adapter or of a U-Net that are trained, by their names there."""
    down = {
        f"down_blocks.{k}.motion_modules.{n}": module
        for k, block in enumerate(network.down_blocks)
        for n, module in enumerate(block.motion_modules)
    }
    up = {
        f"up_blocks.{k}.motion_modules.0": block.motion_modules[0]
        for k, block in enumerate(network.up_blocks)
    }
    return down | up | {"mid_block.motion_modules.0": network.mid_block.motion_modules[0]}


def _key(name: str) -> str:
    return name.replace(".", "-")  # as ModuleDict takes it


def _adapter_of(model: LatentModel, learned: nn.ModuleDict) -> Any:
    """A new adapter with the learned modules."""
    adapter = new_adapter(model)
    for name, module in trained_modules(adapter).items():
        module.load_state_dict(learned[_key(name)].state_dict())
    return adapter


class Contexts:
    """The frozen text encoder's embeddings of captions, each computed once."""

    def __init__(self, model: LatentModel) -> None:
        self._model = model
        self._known: dict[str, Tensor] = {}

    def __call__(self, captions: list[str]) -> Tensor:
        """(b, n, d)"""
        for caption in captions:
            if caption not in self._known:
                self._known[caption] = self._model.encode_prompts([caption], [""]).cond[0]
        return torch.stack([self._known[caption] for caption in captions])


# --- the clips ------------------------------------------------------------------------------------


class Clips:
    """Latents (n, f, c, h, w), float16, and captions."""

    def __init__(self, latents: Tensor, captions: list[str]) -> None:
        self._latents, self._captions = latents, captions

    def __len__(self) -> int:
        return len(self._captions)

    def batch(
        self, rng: np.random.Generator, size: int, dropout: float
    ) -> tuple[Tensor, list[str]]:
        """Latents (size, c, f, h, w) and captions, some of them dropped."""
        picks = rng.integers(len(self), size=size)
        captions = [
            "" if dropped else self._captions[pick]
            for pick, dropped in zip(picks, rng.random(size) < dropout, strict=True)
        ]
        return self._latents[torch.from_numpy(picks)].float().transpose(1, 2), captions


def encode_clips(folder: Path, model: LatentModel, config: MotionConfig) -> Clips:
    """Draw and encode what is missing of the clips, and read all; they depend on the seed alone."""
    folder.mkdir(parents=True, exist_ok=True)
    latents: list[np.ndarray] = []
    captions: list[str] = []
    for number in tqdm(range(-(-config.clips // CHUNK)), desc="clips", unit="file"):
        path = folder / f"{number:04d}.npz"
        count = min(CHUNK, config.clips - number * CHUNK)
        drawn, said = _stored(path)
        if len(said) < count:
            _encode_some(path, model, config, number, count)
            drawn, said = _stored(path)
        latents.append(drawn[:count])
        captions += said[:count]
    return Clips(torch.from_numpy(np.concatenate(latents)), captions)


def _stored(path: Path) -> tuple[np.ndarray, list[str]]:
    """Latents (n, f, c, h, w) and captions of a file's clips; none where there is no file yet."""
    if not path.exists():
        return np.zeros(0), []
    with np.load(path) as part:
        return part["latents"], [str(text) for text in part["captions"]]


def _encode_some(
    path: Path, model: LatentModel, config: MotionConfig, number: int, count: int
) -> None:
    rng = np.random.default_rng([config.seed, 6, number])
    latents, captions = [], []
    for _ in range(count):
        scene, motion = random_clip(rng)
        frames = draw_clip(scene, motion, model.native[1], model.native[0], config.frames)
        pixels = torch.stack([torch.from_numpy(np.array(frame)) for frame in frames])
        images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        with fast_autocast():
            encoded = torch.cat([model.encode(image[None]) for image in images])
        latents.append(encoded.half().numpy())
        captions.append(scene.caption)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, latents=np.stack(latents), captions=np.array(captions))


def _write_record(
    path: Path, model: LatentModel, config: MotionConfig, progress: Progress, clips: int
) -> None:
    record = {
        "model": model.name,
        "config": asdict(config),
        "dtype": computed_in(),
        "clips": clips,
        "steps": progress.step,
        "minutes": round(progress.seconds / 60, 1),
        "loss": [
            [step, round(minutes, 2), losses["loss"]] for step, minutes, losses in progress.losses
        ],
    }
    path.write_text(json.dumps(record) + "\n")
