"""`hires train-demo`: draws scenes and trains the bundled model on them, resumable at any moment.

Four stages, each of which can be run alone: `vae` (autoencoder), `latents` (scenes encoded once),
`model` (U-Net and text encoder) and `export` (files in the LDM layout). Learning rates follow the
share of a stage's minutes that have passed, so a run fits the time that there is; a resumed run may
be given more or fewer minutes than before.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lib_hires.standalone import demo_model as demo
from lib_hires.standalone.scenes import draw, random_scene

log = logging.getLogger("hires_guidance")

STAGES = ("vae", "latents", "model", "export")
BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides how the model comes out, beside the time given."""

    seed: int = 1
    vae_minutes: float = 20.0
    vae_batch: int = 8
    vae_crop: int = 128
    vae_rate: float = 1e-3
    vae_kl: float = 1e-4
    scenes: int = 20_000
    model_minutes: float = 75.0
    model_batch: int = 32
    model_rate: float = 1e-3
    caption_dropout: float = 0.1
    ema: float = 0.999
    warmup_steps: int = 100
    decay_share: float = 0.3  # the last part of a stage, in which the rate falls to zero
    save_minutes: float = 3.0
    sample_minutes: float = 10.0


# --- pictures -------------------------------------------------------------------------------------


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
        picture = np.asarray(draw(scene, demo.NATIVE_SIZE * scale, demo.NATIVE_SIZE * scale))
        pool.append((picture, scene.subjects[0].x, scene.subjects[0].y))
        if len(pool) < 24:
            continue
        pool.pop(0)
        for _ in range(4):
            picture, x, y = pool[int(rng.integers(len(pool)))]
            size = picture.shape[0]
            if rng.random() < 0.5:
                left, top = (
                    int(np.clip(c * size + rng.normal() * 0.15 * size - side / 2, 0, size - side))
                    for c in (x, y)
                )
            else:
                left, top = (int(rng.integers(size - side + 1)) for _ in range(2))
            yield picture[top : top + side, left : left + side]


# --- bookkeeping ----------------------------------------------------------------------------------


@dataclass
class Progress:
    """What a stage has behind it; lives in its checkpoint."""

    step: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float, float]] = field(default_factory=list)  # step, minutes, loss


def rate_at(config: TrainingConfig, progress: Progress, minutes: float, peak: float) -> float:
    """Warm-up over steps, constant, then linear to zero over the last `decay_share` of the time."""
    left = 1 - progress.seconds / (60 * minutes)
    warm = min(1.0, (progress.step + 1) / config.warmup_steps)
    return peak * warm * min(1.0, max(left, 0.0) / config.decay_share)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load(path: Path) -> dict[str, Any] | None:
    return torch.load(path, map_location="cpu", weights_only=False) if path.exists() else None


def run_stage(
    name: str,
    path: Path,
    config: TrainingConfig,
    minutes: float,
    *,
    rate: float,
    parts: dict[str, nn.Module],
    averages: dict[str, nn.Module],
    rng: np.random.Generator,
    loss_of: Callable[[], Tensor],
    look: Callable[[int], None],
) -> Progress:
    """Train `parts` on `loss_of()` until `minutes` of training lie behind them, from `path` on.

    `averages` holds the exponential moving averages of some of the parts, under the same names.
    `look(step)` is called every `sample_minutes` and at the end.
    """
    weights = [p for part in parts.values() for p in part.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    progress = Progress()
    if (state := load(path)) is not None:
        for key, module in (*parts.items(), *((f"ema_{k}", m) for k, m in averages.items())):
            module.load_state_dict(state["modules"][key])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
        rng.bit_generator.state = state["numpy_rng"]
        progress = state["progress"]

    def keep() -> None:
        modules = {k: m.state_dict() for k, m in parts.items()}
        modules |= {f"ema_{k}": m.state_dict() for k, m in averages.items()}
        state = {"modules": modules, "optimizer": optimizer.state_dict(), "progress": progress}
        state |= {"torch_rng": torch.get_rng_state(), "numpy_rng": rng.bit_generator.state}
        save(path, state | {"config": asdict(config)})

    bar = tqdm(total=round(minutes * 60), initial=round(progress.seconds), desc=name, unit="s")
    saved = looked = progress.seconds
    running: list[float] = []
    while progress.seconds < minutes * 60:
        begun = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(config, progress, minutes, rate)
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
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
    config: TrainingConfig, step: int, parts: dict[str, nn.Module], averages: dict[str, nn.Module]
) -> None:
    keep = min(config.ema, (step + 1) / (step + 10))
    for name, average in averages.items():
        torch._foreach_lerp_(
            list(average.parameters()), list(parts[name].parameters()), 1 - keep
        )


# --- stage 1: the autoencoder ---------------------------------------------------------------------


def sharp_loss(picture: Tensor, target: Tensor) -> Tensor:
    """L1 of values and of differences between neighbours, at three scales: crisp edges. (b, 3, h, w)"""
    total = picture.new_zeros(())
    for level in range(3):
        error = picture - target
        total = total + error.abs().mean() * (0.5**level)
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        if level < 2:
            picture, target = F.avg_pool2d(picture, 2), F.avg_pool2d(target, 2)
    return total


def train_vae(work: Path, config: TrainingConfig) -> Progress:
    """Trains the VAE on crops; the checkpoint is `work`/vae.pt."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    vae = demo.speed_up(demo.build_vae()).train()
    source = crops(rng, config.vae_crop)

    def loss_of() -> Tensor:
        batch = to_tensor([next(source) for _ in range(config.vae_batch)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latent = vae.encode(batch).latent_dist
            picture = vae.decode(latent.sample()).sample
        kl = 0.5 * (latent.mean.float() ** 2 + latent.var.float() - 1 - latent.logvar.float())
        return sharp_loss(picture.float(), batch) + config.vae_kl * kl.mean()

    def look(step: int) -> None:
        show_vae(vae, work / "samples" / f"vae-{step:06d}.png")

    return run_stage(
        "vae", work / "vae.pt", config, config.vae_minutes,
        rate=config.vae_rate, parts={"vae": vae}, averages={},
        rng=rng, loss_of=loss_of, look=look,
    )  # fmt: skip


@torch.no_grad()
def show_vae(vae: nn.Module, path: Path) -> None:
    """Eight scenes above their reconstructions, and the logged PSNR at 1x and 2x."""
    from PIL import Image

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

if __name__ == "__main__":
    import sys
    torch.set_num_threads(1)
    train_vae(Path("training"), TrainingConfig(vae_minutes=float(sys.argv[1])))
