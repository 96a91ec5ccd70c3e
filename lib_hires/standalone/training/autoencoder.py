"""The autoencoder of the bundled model: the stages `vae` and `decoder` of `hires train-demo`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from lib_hires.standalone.models.precision import fast_autocast
from lib_hires.standalone.training.loop import Progress, averaged, load
from lib_hires.standalone.training.stages import TrainingConfig, run_stage
from lib_hires.standalone.world import model as demo
from lib_hires.standalone.world.scenes import draw, random_scene

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
    """Start the VAE near plain averaging and upsampling, with little noise in its latents.

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
        with fast_autocast():
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
    averages = {name: averaged(part, config.ema) for name, part in parts.items()}
    demo.speed_up(averages["decoder"])
    source = crops(rng, config.vae_crop)

    def loss_of(progress: Progress) -> Tensor:
        batch = to_tensor([next(source) for _ in range(config.vae_batch)])
        with fast_autocast():
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
        with fast_autocast():
            back = vae.decode(vae.encode(batch).latent_dist.mode()).sample.float().clamp(-1, 1)
        error = float(((back - batch) / 2).square().mean())
        tqdm.write(f"vae at {scale}x: PSNR {-10 * np.log10(error):.2f} dB")
        rows += [torch.cat(list(batch), -1), torch.cat(list(back), -1)]
    width = max(r.shape[-1] for r in rows)
    sheet = torch.cat([F.pad(r, (0, width - r.shape[-1])) for r in rows], -2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((sheet.permute(1, 2, 0) + 1) * 127.5).byte().numpy()).save(path)


def load_vae(work: Path, *files: str) -> nn.Module:
    """The VAE of `work`, before its latents are normalised.

    files: which checkpoints count; by default also `decoder.pt`, where there is one. Raises
    ValueError without `vae.pt`.
    """
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
