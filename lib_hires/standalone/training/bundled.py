"""`hires train-demo`: draws scenes and trains the bundled model on them, resumable at any moment.

Five stages, each of which can be run alone: `vae` (autoencoder), `latents` (scenes encoded once),
`decoder` (the VAE's decoder, trained further for the encoder as it is), `model` (U-Net and text
encoder) and `export` (files in the LDM layout). Once some latents are there, the next two stages
can run side by side in two processes. Learning rates follow the share of a stage's minutes that
have passed, so a run fits the time that there is; a resumed run may be given more or fewer minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from lib_hires.files import whole_file
from lib_hires.noise import per_image
from lib_hires.standalone import bundled
from lib_hires.standalone.models import load_model
from lib_hires.standalone.world import model as demo
from lib_hires.standalone.world.scenes import CLASSES, Scene, draw, random_scene

log = logging.getLogger("hires_guidance")

STAGES = ("vae", "latents", "decoder", "model", "export")
BEFORE = "before.json"  # the record of the model that a work folder was started from


@dataclass(frozen=True)
class StageConfig:
    """What every stage of training needs to know."""

    seed: int = 1
    ema: float = 0.999
    warmup_steps: int = 100
    decay_share: float = 0.5  # the last part of a stage, in which the rate falls to zero
    save_minutes: float = 3.0
    sample_minutes: float = 10.0


@dataclass(frozen=True)
class TrainingConfig(StageConfig):
    """Everything that decides how the model comes out, beside the time given."""

    vae_minutes: float = 20.0
    vae_batch: int = 8
    vae_crop: int = 96
    vae_rate: float = 2e-3
    vae_kl: float = 3e-5
    vae_guided: float = 0.35  # the first part, in which latents are drawn to colours, fading
    decoder_minutes: float = 30.0
    decoder_rate: float = 7e-4
    scenes: int = 20_000
    model_minutes: float = 75.0
    model_batch: int = 16
    model_rate: float = 1e-3
    caption_dropout: float = 0.1


# --- images -------------------------------------------------------------------------------------


def to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 (h, w, 3) arrays to one (b, 3, h, w) tensor in [-1, 1], channels last."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return (batch / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def crops(rng: np.random.Generator, side: int) -> Iterator[np.ndarray]:
    """Endless `side` x `side` crops of scenes at 1x (mostly), 2x and 4x the native size, half of
    them around the object. Scenes are drawn into a small pool from which crops are taken."""
    pool: list[tuple[np.ndarray, float, float]] = []
    while True:
        scale = int(rng.choice([1, 2, 4], p=[0.65, 0.22, 0.13]))
        scene = random_scene(rng)
        image = np.asarray(draw(scene, demo.NATIVE_SIZE * scale, demo.NATIVE_SIZE * scale))
        pool.append((image, scene.subjects[0].x, scene.subjects[0].y))
        if len(pool) < 24:
            continue
        pool.pop(0)
        for _ in range(4):
            image, x, y = pool[int(rng.integers(len(pool)))]
            size = image.shape[0]
            if rng.random() < 0.5:
                left, top = (
                    int(np.clip(c * size + rng.normal() * 0.15 * size - side / 2, 0, size - side))
                    for c in (x, y)
                )
            else:
                left, top = (int(rng.integers(size - side + 1)) for _ in range(2))
            yield image[top : top + side, left : left + side]


# --- bookkeeping ----------------------------------------------------------------------------------


@dataclass
class Progress:
    """What a stage has behind it; lives in its checkpoint."""

    step: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float, float]] = field(default_factory=list)  # step, minutes, loss


def rate_at(config: StageConfig, progress: Progress, minutes: float, peak: float) -> float:
    """Warm-up over steps, constant, then linear to zero over the last `decay_share` of the time."""
    left = 1 - progress.seconds / (60 * minutes)
    warm = min(1.0, (progress.step + 1) / config.warmup_steps)
    return peak * warm * min(1.0, max(left, 0.0) / config.decay_share)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        torch.save(state, partial)


def load(path: Path) -> dict[str, Any] | None:
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def run_stage(
    name: str,
    path: Path,
    config: StageConfig,
    minutes: float,
    *,
    rates: Mapping[str, float],
    parts: dict[str, nn.Module],
    averages: dict[str, nn.Module],
    rng: np.random.Generator,
    loss_of: Callable[[Progress], Tensor],
    look: Callable[[int], None],
) -> Progress:
    """Train `parts` on `loss_of(progress)` until `minutes` have been trained, going on from `path`.

    `rates` holds the highest learning rate of each of the parts.
    `averages` holds the exponential moving averages of some of the parts, under the same names.
    `look(step)` is called every `sample_minutes` and at the end.
    """
    weights: dict[float, list[nn.Parameter]] = defaultdict(list)  # by their highest rate
    for key, part in parts.items():
        weights[rates[key]] += part.parameters()
    learning = [each for some in weights.values() for each in some]
    groups = [{"params": some} for some in weights.values()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    progress = Progress()
    state = load(path)
    if state is not None:
        for key, module in (*parts.items(), *((f"ema_{k}", m) for k, m in averages.items())):
            module.load_state_dict(state["modules"][key])
    if state is not None and "optimizer" in state:  # not yet there after start_from
        optimizer.load_state_dict(state["optimizer"])
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = True, False
        torch.set_rng_state(state["torch_rng"])
        rng.bit_generator.state = state["numpy_rng"]
        progress = Progress(**state["progress"])

    def keep() -> None:
        modules = {k: m.state_dict() for k, m in parts.items()}
        modules |= {f"ema_{k}": m.state_dict() for k, m in averages.items()}
        state = {
            "modules": modules,
            "optimizer": optimizer.state_dict(),
            "progress": asdict(progress),
        }
        state |= {"torch_rng": torch.get_rng_state(), "numpy_rng": rng.bit_generator.state}
        save(path, state | {"config": asdict(config)})

    bar = tqdm(total=round(minutes * 60), initial=round(progress.seconds), desc=name, unit="s")
    saved = looked = progress.seconds
    running: list[float] = []
    while progress.seconds < minutes * 60:
        begun = time.monotonic()
        for group, rate in zip(optimizer.param_groups, weights, strict=True):
            group["lr"] = rate_at(config, progress, minutes, rate)
        loss = loss_of(progress)
        if not torch.isfinite(loss):
            log.warning("%s: step %d has no finite loss; skipped", name, progress.step)
            progress.seconds += time.monotonic() - begun
            continue
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        _average(config, progress.step, parts, averages)
        progress.step += 1
        progress.seconds += time.monotonic() - begun
        running.append(float(loss.detach()))
        bar.n = min(round(progress.seconds), bar.total)
        bar.set_postfix(step=progress.step, loss=f"{np.mean(running):.4f}")
        if len(running) == 50:
            progress.losses.append(
                (progress.step, progress.seconds / 60, round(float(np.mean(running)), 5))
            )
            running.clear()
        if progress.seconds - saved > 60 * config.save_minutes:
            saved = progress.seconds
            keep()
        if progress.seconds - looked > 60 * config.sample_minutes:
            looked = progress.seconds
            look(progress.step)
    keep()
    look(progress.step)
    bar.close()
    return progress


@torch.no_grad()
def _average(
    config: StageConfig, step: int, parts: dict[str, nn.Module], averages: dict[str, nn.Module]
) -> None:
    keep = min(config.ema, (step + 1) / (step + 10))
    for name, average in averages.items():
        torch._foreach_lerp_(list(average.parameters()), list(parts[name].parameters()), 1 - keep)


def start_from(model: Path, work: Path) -> None:
    """Make the weights of the exported model in the folder `model` those that `work` starts with.

    For a machine on which the checkpoints are gone. The VAE counts as trained; the stage `model`
    goes on from the U-Net and text encoder with a new optimizer and its own minutes. Raises
    ValueError where `work` holds checkpoints already.
    """
    if any(work.glob("*.pt")):
        raise ValueError(f"{work}: holds checkpoints already; give another --work")
    loaded = load_model(model / f"{demo.NAME}.safetensors")
    unet, text, vae = loaded.unet, loaded.encoders[0].model, loaded.vae
    save(work / "vae.pt", {"modules": {"vae": vae.state_dict()}})
    weights = {"unet": unet.state_dict(), "text": text.state_dict()}
    weights |= {f"ema_{name}": state for name, state in weights.items()}
    save(work / "model.pt", {"modules": weights})
    (work / "latents").mkdir(exist_ok=True)
    normalised = {"mean": [0.0] * demo.LATENT_CHANNELS}
    normalised |= {"deviation": [1 / demo.SCALE_FACTOR] * demo.LATENT_CHANNELS}
    (work / "latents" / "normalisation.json").write_text(json.dumps(normalised))
    record = model / "training.json"
    (work / BEFORE).write_text(record.read_text() if record.exists() else "{}")


# --- stage 1: the autoencoder ---------------------------------------------------------------------


def sharp_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 of values and of neighbours' differences at three scales, for crisp edges. (b, 3, h, w)"""
    total = image.new_zeros(())
    for level in range(3):
        error = image - target
        total = total + 2 * error.abs().mean()
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        if level < 2:
            image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
    return total


@torch.no_grad()
def start_plainly(vae: nn.Module) -> None:
    """Start the VAE near plain averaging and enlarging, with little noise in its latents.

    From the usual start all four latent channels first become copies of the brightness, and colour
    takes thousands of steps to come.
    """
    for name, part in vae.named_modules():
        if name.endswith(("downsamplers.0.conv", "upsamplers.0.conv")):
            part.weight *= 0.3
            channels = range(part.weight.shape[0])
            if "down" in name:
                part.weight[channels, channels, :2, :2] += 0.25
            else:
                part.weight[channels, channels, 1, 1] += 1.0
        elif ".resnets." in name and name.endswith("conv2"):
            part.weight *= 0.1
    nn.init.orthogonal_(vae.quant_conv.weight)
    vae.quant_conv.weight[demo.LATENT_CHANNELS :] *= 0.1
    vae.quant_conv.bias[demo.LATENT_CHANNELS :] = -8.0


def train_vae(work: Path, config: TrainingConfig) -> Progress:
    """Trains the VAE on crops; the checkpoint is `work`/vae.pt."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    vae = demo.speed_up(demo.build_vae()).train()
    start_plainly(vae)
    source = crops(rng, config.vae_crop)

    def loss_of(progress: Progress) -> Tensor:
        batch = to_tensor([next(source) for _ in range(config.vae_batch)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latent = vae.encode(batch).latent_dist
            image = vae.decode(latent.sample()).sample
        kl = 0.5 * (latent.mean.float() ** 2 + latent.var.float() - 1 - latent.logvar.float())
        colours = F.l1_loss(latent.mean[:, :3].float(), 3 * F.avg_pool2d(batch, demo.VAE_FACTOR))
        fade = max(0.0, 1 - progress.seconds / (60 * config.vae_minutes * config.vae_guided))
        loss = sharp_loss(image.float(), batch) + config.vae_kl * kl.mean()
        return loss + 3 * fade * colours

    def look(step: int) -> None:
        show_vae(vae, work / "samples" / f"vae-{step:06d}.png")

    return run_stage(
        "vae", work / "vae.pt", config, config.vae_minutes,
        rates={"vae": config.vae_rate}, parts={"vae": vae}, averages={},
        rng=rng, loss_of=loss_of, look=look,
    )  # fmt: skip


def train_decoder(work: Path, config: TrainingConfig) -> Progress:
    """Trains the decoder alone: latents stay valid. The checkpoint is `work`/decoder.pt."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng([config.seed, 1])
    vae = load_vae(work, "vae.pt")
    parts = {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}
    for part in parts.values():
        part.requires_grad_(True).train()
    averages = {k: copy.deepcopy(m).requires_grad_(False) for k, m in parts.items()}
    demo.speed_up(averages["decoder"])
    source = crops(rng, config.vae_crop)

    def loss_of(progress: Progress) -> Tensor:
        batch = to_tensor([next(source) for _ in range(config.vae_batch)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                latent = vae.encode(batch).latent_dist.sample()
            image = vae.decode(latent).sample
        return sharp_loss(image.float(), batch)

    def look(step: int) -> None:
        show_vae(vae, work / "samples" / f"decoder-{step:06d}.png")

    return run_stage(
        "decoder", work / "decoder.pt", config, config.decoder_minutes,
        rates=dict.fromkeys(parts, config.decoder_rate), parts=parts, averages=averages,
        rng=rng, loss_of=loss_of, look=look,
    )  # fmt: skip


@torch.no_grad()
def show_vae(vae: nn.Module, path: Path) -> None:
    """Eight scenes above their reconstructions, and the logged PSNR at 1x and 2x."""
    rng = np.random.default_rng(123)
    rows: list[Tensor] = []
    for scale, count in ((1, 8), (2, 4)):
        size = demo.NATIVE_SIZE * scale
        batch = to_tensor([np.asarray(draw(random_scene(rng), size, size)) for _ in range(count)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            back = vae.decode(vae.encode(batch).latent_dist.mode()).sample.float().clamp(-1, 1)
        error = float(((back - batch) / 2).square().mean())
        tqdm.write(f"vae at {scale}x: PSNR {-10 * np.log10(error):.2f} dB")
        rows += [torch.cat(list(batch), -1), torch.cat(list(back), -1)]
    width = max(r.shape[-1] for r in rows)
    sheet = torch.cat([F.pad(r, (0, width - r.shape[-1])) for r in rows], -2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((sheet.permute(1, 2, 0) + 1) * 127.5).byte().numpy()).save(path)


# --- stage 2: latents -----------------------------------------------------------------------------

SHARD = 500  # scenes a file


def load_vae(work: Path, *files: str) -> nn.Module:
    """The VAE of `work`, before its latents are normalised: with the decoder of `decoder.pt` where
    that is there, unless only other `files` are asked for."""
    files = files or ("vae.pt", "decoder.pt")
    state = load(work / "vae.pt")
    if state is None:
        raise ValueError(f"{work / 'vae.pt'}: not there; run the stage 'vae' first")
    vae = demo.build_vae()
    vae.load_state_dict(state["modules"]["vae"])
    better = load(work / "decoder.pt") if "decoder.pt" in files else None
    if better is not None:
        for part in ("decoder", "post_quant_conv"):
            getattr(vae, part).load_state_dict(better["modules"][f"ema_{part}"])
    return demo.speed_up(vae).eval().requires_grad_(False)


def encode_scenes(work: Path, config: TrainingConfig) -> None:
    """Draw and encode `config.scenes` scenes, each once, into `work`/latents/*.npz."""
    vae = load_vae(work)
    for number in tqdm(range(-(-config.scenes // SHARD)), desc="latents", unit="file"):
        encode_shard(work / "latents", vae, config.seed, number)


@torch.no_grad()
def encode_shard(folder: Path, vae: nn.Module, seed: int, number: int) -> None:
    """Write the latents and captions of SHARD scenes, unless their file is there already."""
    path = folder / f"{number:04d}.npz"
    if path.exists():
        return
    rng = np.random.default_rng([seed, 2, number])
    scenes = [random_scene(rng) for _ in range(SHARD)]
    size, latents = demo.NATIVE_SIZE, []
    for k in range(0, SHARD, 4):  # small batches stay in the cache
        batch = to_tensor([np.asarray(draw(s, size, size)) for s in scenes[k : k + 4]])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents.append(vae.encode(batch).latent_dist.mode().half().contiguous().numpy())
    captions = [[replace(s, names_ground=g).caption for g in (False, True)] for s in scenes]
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, latents=np.concatenate(latents), captions=np.array(captions))


class Latents:
    """The encoded scenes as (n, 4, 32, 32) float16 and their captions, short and long."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: set[Path] = set()
        self.latents = torch.empty(0, demo.LATENT_CHANNELS, 32, 32, dtype=torch.float16)
        self.captions: list[list[str]] = []
        self.refresh()
        if not self.captions:
            raise ValueError(f"{folder}: holds no latents; run the stage 'latents' first")
        self.mean, self.deviation = self._normalisation()  # (1, 4, 1, 1) each

    def refresh(self) -> None:
        """Read the files that came since; another process may still be writing them."""
        for path in sorted(set(self.folder.glob("[0-9]*.npz")) - self._read):
            with np.load(path) as file:
                more = torch.from_numpy(file["latents"])
                self.captions += file["captions"].tolist()
            self.latents = torch.cat([self.latents, more])
            self._read.add(path)

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation a channel, fixed when first asked for."""
        path = self.folder / "normalisation.json"
        if not path.exists():
            values = self.latents.float()
            mean, deviation = values.mean((0, 2, 3)).tolist(), values.std((0, 2, 3)).tolist()
            path.write_text(json.dumps({"mean": mean, "deviation": deviation}))
        stored = json.loads(path.read_text())
        mean, deviation = (torch.tensor(stored[k]) for k in ("mean", "deviation"))
        return mean.view(1, -1, 1, 1), deviation.view(1, -1, 1, 1)

    def batch(
        self, rng: np.random.Generator, size: int, dropout: float
    ) -> tuple[Tensor, list[str]]:
        """Normalised latents (size, 4, 32, 32) and captions, some of them dropped."""
        picks = rng.integers(len(self.captions), size=size)
        long = rng.random(size) < 0.5
        dropped = rng.random(size) < dropout
        captions = [
            "" if d else self.captions[k][int(g)]
            for k, g, d in zip(picks, long, dropped, strict=True)
        ]
        values = self.latents[torch.from_numpy(picks)].float()
        return (values - self.mean) / self.deviation, captions


# --- stage 3: U-Net and text encoder --------------------------------------------------------------


def train_model(work: Path, config: TrainingConfig) -> Progress:
    """Trains the U-Net with the text encoder on v; the checkpoint is `work`/model.pt."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng([config.seed, 3])
    data = Latents(work / "latents")
    tokenizer = demo.build_tokenizer(work / "tokenizer")
    parts = {"unet": demo.build_unet(), "text": demo.build_text_encoder()}
    averages = {k: copy.deepcopy(m).requires_grad_(False) for k, m in parts.items()}
    for group in (parts, averages):
        demo.speed_up(group["unet"])
    parts["unet"].set_attn_processor(AttnProcessor())  # its backward pass is the faster one here
    tokens = TokenCache(tokenizer)
    vae = load_vae(work)
    steps = 0

    def loss_of(progress: Progress) -> Tensor:
        nonlocal steps
        steps += 1
        if steps % 200 == 0:
            data.refresh()
        x0, captions = data.batch(rng, config.model_batch, config.caption_dropout)
        t = random_times(len(x0))
        a, s = scales(t)
        noise = torch.randn_like(x0)
        noisy = (a * x0 + s * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            context = parts["text"](tokens(captions)).last_hidden_state
            v = parts["unet"](noisy, t, context).sample
        return F.mse_loss(v.float(), a * noise - s * x0)

    def look(step: int) -> None:
        path = work / "samples" / f"model-{step:06d}.png"
        show_samples(averages["unet"], averages["text"], vae, data, tokenizer, path)

    return run_stage(
        "model", work / "model.pt", config, config.model_minutes,
        rates=dict.fromkeys(parts, config.model_rate), parts=parts, averages=averages,
        rng=rng, loss_of=loss_of, look=look,
    )  # fmt: skip


def trained_model(work: Path) -> tuple[nn.Module, nn.Module]:
    """The averaged U-Net and text encoder of `work`. Raises ValueError where none was trained."""
    state = load(work / "model.pt")
    if state is None:
        raise ValueError(
            f"{work / 'model.pt'}: not there; run the stage 'model' first, or give --start-from"
        )
    parts = {"unet": demo.build_unet(), "text": demo.build_text_encoder()}
    for name, part in parts.items():
        part.load_state_dict(state["modules"][f"ema_{name}"])
        part.eval().requires_grad_(False)
    return parts["unet"], parts["text"]


def scales(t: Tensor) -> tuple[Tensor, Tensor]:
    """a(t) and s(t), (b, 1, 1, 1) each, of timesteps (b,)."""
    abar = per_image(_abar()[t])
    return abar.sqrt(), (1 - abar).sqrt()


@cache
def _abar() -> Tensor:
    return demo.alphas_cumprod().float()


def random_times(n: int) -> Tensor:
    """(n,) timesteps: a quarter uniform, the rest around the middle, where shapes are decided."""
    share = (torch.randperm(n) + torch.rand(n)) / n  # stratified
    middle = torch.sigmoid(0.2 + torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4)))
    share = torch.where(torch.rand(n) < 0.25, share, middle)
    return (share * demo.TRAINING_STEPS).long().clamp(max=demo.TRAINING_STEPS - 1)


class TokenCache:
    """Token ids of captions, each tokenized once; there are only some thousand."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> Tensor:
        for caption in captions:
            if caption not in self._ids:
                self._ids[caption] = demo.tokenize(self._tokenizer, [caption])[0]
        return torch.stack([self._ids[c] for c in captions])


@torch.no_grad()
def sample(
    unet: nn.Module,
    context: Tensor,
    empty: Tensor,
    noise: Tensor,
    *,
    steps: int = 20,
    cfg: float = 4.0,
) -> Tensor:
    """Normalised latents by DPM++ 2M on Karras' sigmas (rho 7), for looks while training.

    `context`, `empty`: (b, 77, 128); `noise`: (b, 4, h, w) of unit variance.
    """
    table = ((1 - _abar()) / _abar()).sqrt()
    ramp = torch.linspace(0, 1, steps)
    low, high = table[0] ** (1 / 7), table[-1] ** (1 / 7)
    sigmas = torch.cat([(high + ramp * (low - high)) ** 7, torch.zeros(1)])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        t = torch.tensor(np.interp(sigma.log(), table.log(), np.arange(1000.0)))
        scaled = (x / (sigma**2 + 1).sqrt()).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            v = unet(torch.cat([scaled] * 2), t, torch.cat([empty, context])).sample.float()
        uncond, cond = v.chunk(2)
        v = uncond + cfg * (cond - uncond)
        return x / (sigma**2 + 1) - v * sigma / (sigma**2 + 1).sqrt()

    x, old = noise * sigmas[0], None
    for k in range(steps):
        x0 = denoise(x, sigmas[k])
        if sigmas[k + 1] == 0:
            return x0
        h = (sigmas[k] / sigmas[k + 1]).log()
        mixed = x0
        if old is not None:
            r = (sigmas[k - 1] / sigmas[k]).log() / h
            mixed = x0 + (x0 - old) / (2 * r)
        x, old = sigmas[k + 1] / sigmas[k] * x - (-h).expm1() * mixed, x0
    return x


@torch.no_grad()
def show_samples(
    unet: nn.Module,
    text: nn.Module,
    vae: nn.Module,
    data: Latents,
    tokenizer: CLIPTokenizer,
    path: Path,
    *,
    sampler: Callable[..., Tensor] = sample,
) -> None:
    """24 images of the averaged model; the first ten name the classes in order.

    sampler: called as `sample` is.
    """
    rng = np.random.default_rng(7)
    kinds = list(CLASSES)
    scenes: list[Scene] = []
    while len(scenes) < 24:
        scene = random_scene(rng)
        if scene.subjects[0].kind == kinds[len(scenes) % len(kinds)]:
            scenes.append(scene)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context, empty = (
            text(demo.tokenize(tokenizer, captions)).last_hidden_state.float()
            for captions in ([s.caption for s in scenes], [""] * len(scenes))
        )
    noise = torch.randn(len(scenes), 4, 32, 32, generator=torch.Generator().manual_seed(7))
    latent = sampler(unet, context, empty, noise) * data.deviation + data.mean
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = vae.decode(latent.contiguous(memory_format=torch.channels_last)).sample.float()
    grid = torch.cat([torch.cat(list(row), -1) for row in images.clamp(-1, 1).split(8)], -2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((grid.permute(1, 2, 0) + 1) * 127.5).byte().numpy()).save(path)
    path.with_suffix(".txt").write_text("\n".join(s.caption for s in scenes))


# --- stage 4: export ------------------------------------------------------------------------------


def export_model(work: Path, out: Path) -> None:
    """Write the bundled model's files, the training's record and its loss curve into `out`."""
    vae, data = load_vae(work), Latents(work / "latents")
    unet, text = trained_model(work)
    demo.normalise_latents(vae, data.mean.flatten(), data.deviation.flatten())
    demo.export(out, vae=vae, unet=unet, text_encoder=text)
    found = {name: load(work / f"{name}.pt") for name in ("vae", "decoder", "model")}
    record = {"scenes_encoded": len(data.captions)}
    record |= {k: _record(state) for k, state in found.items() if state and "progress" in state}
    before = work / BEFORE
    records = [*_unfolded(json.loads(before.read_text()) if before.exists() else None), record]
    for earlier, later in pairwise(records):
        later["before"] = earlier
    (out / "training.json").write_text(json.dumps(record) + "\n")
    _plot(out / "loss.png", records)


def _record(state: dict[str, Any]) -> dict[str, Any]:
    """How a stage was last run, and its losses as (step, minutes, loss)."""
    progress = Progress(**state["progress"])
    return {
        "config": state["config"],
        "steps": progress.step,
        "minutes": round(progress.seconds / 60, 1),
        "loss": [[step, round(minutes, 2), loss] for step, minutes, loss in progress.losses],
    }


def _unfolded(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The record of each training that a model went through, the first one first."""
    return [] if record is None else [*_unfolded(record.get("before")), record]


def _plot(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """The loss curve of every stage of every training, in order."""
    curves = [
        (name if k == 0 else f"{name}, continued", record[name]["loss"])
        for k, record in enumerate(records)
        for name in ("vae", "decoder", "model")
        if name in record
    ]
    figure = Figure(figsize=(3.7 * len(curves), 3.2), layout="constrained")
    for axes, (name, losses) in zip(np.ravel(figure.subplots(1, len(curves))), curves, strict=True):
        axes.plot([step for step, _, _ in losses], [loss for _, _, loss in losses])
        axes.set(xlabel="step", ylabel="loss", yscale="log", title=name)
    figure.savefig(path, dpi=110)


# --- the command ----------------------------------------------------------------------------------


def train(
    out: Path,
    *,
    stages: Sequence[str] = STAGES,
    config: TrainingConfig | None = None,
    work: Path = Path("training"),
) -> None:
    """Run `stages` in order. Checkpoints, latents and samples go to `work`, the model to `out`.

    Called again it goes on where it stopped: at the last checkpoint of an unfinished stage. With
    fewer minutes than have passed, a stage ends at once; to let the rate decay from where a run
    stands, give it minutes a little above those passed.
    """
    config = config or TrainingConfig()
    unknown = [s for s in stages if s not in STAGES]
    if unknown:
        raise ValueError(f"stages: expected some of {', '.join(STAGES)}, got {unknown[0]!r}")
    if "vae" in stages and not (work / BEFORE).exists():
        train_vae(work, config)
    if "latents" in stages:
        encode_scenes(work, config)
    if "decoder" in stages:
        train_decoder(work, config)
    if "model" in stages:
        train_model(work, config)
    if "export" in stages:
        out.mkdir(parents=True, exist_ok=True)
        export_model(work, out)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=bundled.FOLDER, help="folder of the finished model"
    )
    parser.add_argument("--work", type=Path, default=Path("training"), help="checkpoints, samples")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of them, with commas")
    parser.add_argument(
        "--start-from", type=Path, help="folder of an exported model whose weights to go on from"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's choice")
    for option in fields(TrainingConfig):
        name = "--" + option.name.replace("_", "-")
        parser.add_argument(name, type=type(option.default), default=option.default)
    chosen = vars(parser.parse_args(arguments))
    out, work, stages = chosen.pop("out"), chosen.pop("work"), chosen.pop("stages").split(",")
    if threads := chosen.pop("threads"):
        torch.set_num_threads(threads)
    if model := chosen.pop("start_from"):
        start_from(model, work)
    train(out, stages=stages, work=work, config=TrainingConfig(**chosen))


if __name__ == "__main__":
    main()
