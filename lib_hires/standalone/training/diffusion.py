"""The U-Net and the text encoder of the bundled model: the stage `model` of `hires train-demo`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTokenizer

from lib_hires.noise import per_image
from lib_hires.standalone.models.precision import fast_autocast
from lib_hires.standalone.training.autoencoder import load_vae
from lib_hires.standalone.training.latents import Latents
from lib_hires.standalone.training.loop import Progress, adamw, averaged, load
from lib_hires.standalone.training.muon import Muon, Optimizers, inner_and_other
from lib_hires.standalone.training.stages import TrainingConfig, run_stage
from lib_hires.standalone.world import model as demo
from lib_hires.standalone.world.scenes import CLASSES, Scene, random_scene

ENDS = ("conv_in", "conv_out")  # of the U-Net, in their weights' names


def train_model(work: Path, config: TrainingConfig) -> Progress:
    """Trains the U-Net with the text encoder on v; the checkpoint is `work`/model.pt."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng([config.seed, 3])
    data = Latents(work / "latents")
    tokenizer = demo.build_tokenizer(work / "tokenizer")
    parts = {"unet": demo.build_unet(), "text": demo.build_text_encoder()}
    averages = {name: averaged(part, config.ema) for name, part in parts.items()}
    demo.speed_up(averages["unet"])
    demo.speed_up(parts["unet"])
    parts["unet"].set_attn_processor(AttnProcessor())  # its backward pass is the faster one here
    tokens = TokenCache(tokenizer)
    vae = load_vae(work)
    rates = dict.fromkeys(parts, config.model_rate)
    inner, other = inner_and_other(parts["unet"], ENDS)
    rest = {"unet": nn.ParameterList(other), "text": parts["text"]}
    optimizer = Optimizers(Muon(inner, config.model_rate), adamw(rest, rates))

    def loss_of(progress: Progress) -> Tensor:
        if progress.step % 200 == 0:
            data.refresh()
        x0, captions = data.batch(rng, config.model_batch, config.caption_dropout)
        t = random_times(len(x0))
        a, s = scales(t)
        noise = torch.randn_like(x0)
        noisy = (a * x0 + s * noise).contiguous(memory_format=torch.channels_last)
        with fast_autocast():
            context = parts["text"](tokens(captions)).last_hidden_state
            v = parts["unet"](noisy, t, context).sample
        return F.mse_loss(v.float(), a * noise - s * x0)

    def look(step: int) -> None:
        path = work / "samples" / f"model-{step:06d}.png"
        show_samples(averages["unet"].module, averages["text"].module, vae, data, tokenizer, path)

    return run_stage(
        "model", work / "model.pt", config, config.model_minutes,
        rates=rates, parts=parts, averages=averages,
        rng=rng, loss_of=loss_of, look=look, optimizer=optimizer,
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
    share = stratified(n)
    middle = torch.sigmoid(0.2 + torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4)))
    share = torch.where(torch.rand(n) < 0.25, share, middle)
    return timesteps(share)


def stratified(n: int) -> Tensor:
    """(n,) uniform numbers from 0 to 1 in random order, one in each n-th part."""
    return (torch.randperm(n) + torch.rand(n)) / n


def timesteps(shares: Tensor) -> Tensor:
    """The training timesteps that lie at these shares of them, 0 to 1."""
    return (shares * demo.TRAINING_STEPS).long().clamp(max=demo.TRAINING_STEPS - 1)


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
    """Normalised latents by DPM++ 2M on Karras' sigmas (rho 7), to look at while training.

    `context`, `empty`: (b, 77, 128); `noise`: (b, 4, h, w) of unit variance.
    """
    table = ((1 - _abar()) / _abar()).sqrt()
    ramp = torch.linspace(0, 1, steps)
    low, high = table[0] ** (1 / 7), table[-1] ** (1 / 7)
    sigmas = torch.cat([(high + ramp * (low - high)) ** 7, torch.zeros(1)])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        t = torch.tensor(np.interp(sigma.log(), table.log(), np.arange(1000.0)))
        scaled = (x / (sigma**2 + 1).sqrt()).contiguous(memory_format=torch.channels_last)
        with fast_autocast():
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
    with fast_autocast():
        context, empty = (
            text(demo.tokenize(tokenizer, captions)).last_hidden_state.float()
            for captions in ([s.caption for s in scenes], [""] * len(scenes))
        )
    noise = torch.randn(len(scenes), 4, 32, 32, generator=torch.Generator().manual_seed(7))
    latent = sampler(unet, context, empty, noise) * data.deviation + data.mean
    with fast_autocast():
        images = vae.decode(latent.contiguous(memory_format=torch.channels_last)).sample.float()
    grid = torch.cat([torch.cat(list(row), -1) for row in images.clamp(-1, 1).split(8)], -2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((grid.permute(1, 2, 0) + 1) * 127.5).byte().numpy()).save(path)
    path.with_suffix(".txt").write_text("\n".join(s.caption for s in scenes))
