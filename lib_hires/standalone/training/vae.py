"""Trains the bundled model's VAE as latent diffusion does, in steps, resumable at any moment.

    python -m lib_hires.standalone.training.vae WORK --crops FOLDER

Three phases: values and features alone (`plain_steps`), then with a critic, and from
`encoder_steps` on the decoder alone, so that latents stay valid while other models train on them.
WORK holds vae.pt, log.csv and a sheet every `sample_steps`. Each step's chance follows from its
number, so a resumed run goes on as if it had never stopped (from its last checkpoint).
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib_hires.files import whole_file
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.precision import fast_autocast
from lib_hires.standalone.training.autoencoder import start_plainly, to_tensor
from lib_hires.standalone.training.crops import SCALES, Crops
from lib_hires.standalone.training.vae_losses import (
    Critic,
    Perceptual,
    balance,
    feature_loss,
    hinge,
    mean_score,
    value_loss,
)
from lib_hires.standalone.training.widen import widened
from lib_hires.standalone.world import model as demo
from lib_hires.standalone.world.octaves import octave_energies

log = logging.getLogger("hires_guidance")

CHECKPOINT = "vae.pt"
LOGGED = ("values", "features", "kl", "deviation", "norm", "score", "factor", "critic")
EXAMPLES = 48  # crops that fix the features' deviations
SHOWN = 4  # crops of each scale on a sheet


@dataclass(frozen=True)
class VaeConfig:
    """Everything that decides how the VAE comes out."""

    seed: int = 1
    multipliers: str = "1,1,2,2"
    crop: int = 128
    batch: int = 3
    rate: float = 2e-4
    critic_rate: float = 2e-4
    plain_steps: int = 1500
    encoder_steps: int = 8000
    steps: int = 24_000
    warmup_steps: int = 100
    decay_share: float = 0.25  # the last part, in which the rates fall to zero
    perceptual: float = 0.5
    adversarial: float = 0.5
    critic_lead: int = 300  # steps in which the critic learns before it is heeded
    fade_steps: int = 500  # in which the adversarial term comes in
    kl: float = 1e-4
    latent_noise: float = 0.05  # of the latents' deviation, so that decoding bears a U-Net's errors
    guided_steps: int = 800  # in which latents are drawn to colours, fading
    halved_share: float = 0.2  # steps in which latents are halved and so must the images be
    ema: float = 0.999
    ema_from: int = 300
    log_steps: int = 25
    save_steps: int = 100
    sample_steps: int = 500


def build_vae(multipliers: Sequence[int]) -> AutoencoderKL:
    """The bundled model's VAE with other widths: multiples, level by level, of its channels."""
    config = dict(demo.build_vae().config)
    config["block_out_channels"] = [demo.VAE_CHANNELS * each for each in multipliers]
    return AutoencoderKL.from_config(config)


class VaeTraining:
    """One run: its networks, its optimizers and where it stands."""

    def __init__(
        self, work: Path, crops: Crops, config: VaeConfig, start: nn.Module | None = None
    ) -> None:
        """start: a trained VAE of the same or smaller widths to begin with, if there is one."""
        torch.manual_seed(config.seed)
        self.config, self._work, self._crops = config, work, crops
        self.step, self.seconds = 0, 0.0
        self.vae = build_vae([int(each) for each in config.multipliers.split(",")])
        if start is None:
            start_plainly(self.vae)
        else:
            self.vae.load_state_dict(widened(start.state_dict(), self.vae.state_dict(), 0.05))
        demo.speed_up(self.vae).train()
        average = get_ema_multi_avg_fn(config.ema)
        self.average = AveragedModel(self.vae, multi_avg_fn=average)
        examples = crops.windows(np.random.default_rng(config.seed), EXAMPLES, config.crop)
        self._perceptual = Perceptual(to_tensor(examples)).to(memory_format=torch.channels_last)
        self.critic = demo.speed_up(Critic(self._perceptual.widths)).train()
        self._optimizer = torch.optim.Adam(self.vae.parameters(), betas=(0.9, 0.99), fused=True)
        self._critic_optimizer = torch.optim.Adam(
            self.critic.parameters(), betas=(0.5, 0.9), fused=True
        )
        self._sums: dict[str, list[float]] = {}

    # --- one step ---------------------------------------------------------------------------------

    def rate(self, peak: float, since: int = 0) -> float:
        """Warm-up from step `since`, constant, then linear to zero."""
        left = (self.config.steps - self.step) / (self.config.steps * self.config.decay_share)
        warm = (self.step - since + 1) / self.config.warmup_steps
        return peak * min(1.0, warm, left)

    def advance(self) -> None:
        """Train one step."""
        c, rng = self.config, np.random.default_rng([self.config.seed, 1, self.step])
        torch.manual_seed(int(rng.integers(2**62)))
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(c.rate)
        true = to_tensor(self._crops.windows(rng, c.batch, c.crop))
        only_decoder = self.step >= c.encoder_steps
        if self.step == c.encoder_steps:
            self._freeze_encoder()
        if only_decoder:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        halved = not only_decoder and rng.random() < c.halved_share
        made, target, latent_losses = self._reconstructed(true, halved)
        gradient = self._gradient(made, target)
        self._optimizer.zero_grad(set_to_none=True)
        if only_decoder:
            made.backward(gradient)
        else:
            torch.autograd.backward([made, latent_losses], [gradient, None])
        norm = nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self._note(norm=norm)
        if torch.isfinite(norm):
            self._optimizer.step()
        if self.step >= c.ema_from:
            self.average.update_parameters(self.vae)
        self.step += 1

    def _reconstructed(self, true: Tensor, halved: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Images (b, 3, h, w), what they should be, and the losses of their latents.

        halved: the latents are averaged over 2x2, and the target is the true image at half the
        size. So latents of a large image hold those of the small one (Kouzelis et al. 2025).
        """
        c = self.config
        with fast_autocast():
            with torch.set_grad_enabled(self.step < c.encoder_steps):
                posterior = self.vae.encode(true).latent_dist
            latent = posterior.sample().float()
            mean, variance = posterior.mean.float(), posterior.var.float()
            spread = c.latent_noise * latent.detach().std((0, 2, 3), keepdim=True)
            latent = latent + spread * torch.randn_like(latent)
            target = true
            if halved:
                latent, target = F.avg_pool2d(latent, 2), F.avg_pool2d(true, 2)
            made = self.vae.decode(latent.contiguous(memory_format=torch.channels_last)).sample
        kl = 0.5 * (mean**2 + variance - 1 - posterior.logvar.float()).mean()
        fade = max(0.0, 1 - self.step / max(c.guided_steps, 1))
        colours = F.l1_loss(mean[:, :3], 3 * F.avg_pool2d(true, demo.VAE_FACTOR))
        self._note(kl=kl, deviation=variance.sqrt().mean() / mean.std())
        return made.float(), target, c.kl * kl + fade * colours

    def _gradient(self, made: Tensor, true: Tensor) -> Tensor:
        """The gradient of all losses of the images, at the images `made`; trains the critic."""
        c = self.config
        values = value_loss(made, true, demo.VAE_FACTOR)
        with fast_autocast():
            features = self._perceptual(made)
            with torch.no_grad():
                true_features = self._perceptual(true)
            differences = feature_loss(features, true_features)
        self._note(values=values, features=differences)
        losses = values + c.perceptual * differences
        (gradient,) = torch.autograd.grad(losses, made, retain_graph=True)
        if self.step < c.plain_steps - c.critic_lead:
            return gradient
        self._train_critic((true, true_features), (made, features))
        if self.step < c.plain_steps:
            return gradient
        self.critic.requires_grad_(False)
        with fast_autocast():
            score = mean_score(self.critic(made, features))
        (adversarial,) = torch.autograd.grad(-score, made)
        factor = balance(made, gradient, adversarial, self.vae.decoder.conv_out.weight)
        self._note(score=score, factor=factor)
        fade_in = min(1.0, (self.step - c.plain_steps) / c.fade_steps)
        return gradient + fade_in * c.adversarial * factor * adversarial

    def _train_critic(self, *sets: tuple[Tensor, list[Tensor]]) -> None:
        """One step of the critic on true images and on results, each with their features."""
        self.critic.requires_grad_(True)
        for group in self._critic_optimizer.param_groups:
            since = self.config.plain_steps - self.config.critic_lead
            group["lr"] = self.rate(self.config.critic_rate, since)
        images, features = zip(*sets, strict=True)
        maps = [torch.cat(each).detach() for each in zip(*features, strict=True)]
        with fast_autocast():
            loss = hinge(self.critic(torch.cat(images).detach(), maps))
        self._critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._critic_optimizer.step()
        self._note(critic=loss)

    def _freeze_encoder(self) -> None:
        """The averaged encoder becomes the encoder, for good."""
        for part in ("encoder", "quant_conv"):
            averaged = getattr(self.average.module, part).state_dict()
            getattr(self.vae, part).load_state_dict(averaged)

    # --- the run ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until `config.steps`, from where the checkpoint stands."""
        self.resume()
        c = self.config
        while self.step < c.steps:
            begun = time.monotonic()
            self.advance()
            self.seconds += time.monotonic() - begun
            if self.step % c.log_steps == 0:
                self._write_log()
            if self.step % c.save_steps == 0 or self.step == c.steps:
                self.keep()
                self._crops.refresh()
            if self.step % c.sample_steps == 0 or self.step == c.steps:
                self.show()

    def _note(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums.setdefault(name, []).append(float(value.detach()))

    def _write_log(self) -> None:
        row = {"step": self.step, "minutes": round(self.seconds / 60, 2)}
        row |= {name: round(float(np.mean(self._sums.get(name, [np.nan]))), 5) for name in LOGGED}
        self._sums.clear()
        path = self._work / "log.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)

    def keep(self) -> None:
        """Write the checkpoint, so that a kill at any moment leaves the old one or the new one."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"step": self.step, "seconds": self.seconds, "config": asdict(self.config)}
        with whole_file(self._work / CHECKPOINT) as partial:
            torch.save(state, partial)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path = self._work / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]

    def _parts(self) -> dict[str, Any]:
        return {
            "vae": self.vae,
            "average": self.average,
            "critic": self.critic,
            "optimizer": self._optimizer,
            "critic_optimizer": self._critic_optimizer,
        }

    @torch.no_grad()
    def show(self) -> None:
        """Crops of each scale above their reconstructions, and what is left of their detail."""
        rows, line = [], {"step": self.step}
        vae = self.average.module.eval()
        for scale, crops in zip(SCALES, self._crops.examples(SHOWN), strict=True):
            true = to_tensor(crops)
            with fast_autocast():
                made = vae.decode(vae.encode(true).latent_dist.mode()).sample
            made = made.float().clamp(-1, 1)
            rows += [torch.cat(list(each), -1) for each in (true, made)]
            ratio = octave_energies(made)[0] / max(octave_energies(true)[0], 1e-12)
            colour = 127.5 * (made - true).mean((2, 3)).abs().mean()
            line[f"detail_{scale}x"] = round(ratio, 3)
            line[f"colour_{scale}x"] = round(float(colour), 2)
        sheet = ((torch.cat(rows, -2).permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        folder = self._work / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(folder / f"{self.step:06d}.png")
        log.info("vae: %s", line)
        with (self._work / "detail.csv").open("a") as file:
            file.write(",".join(str(each) for each in line.values()) + "\n")


def averaged_vae(work: Path) -> AutoencoderKL:
    """The averaged VAE of a run, its latents not yet normalised."""
    state = torch.load(work / CHECKPOINT, map_location="cpu", weights_only=True)
    vae = build_vae([int(each) for each in state["config"]["multipliers"].split(",")])
    prefix = "module."
    vae.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state["average"].items() if k.startswith(prefix)}
    )
    return demo.speed_up(vae).eval().requires_grad_(False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--crops", type=Path, required=True)
    parser.add_argument("--start-from", type=Path, help="a model whose VAE to widen and go on from")
    parser.add_argument("--threads", type=int, default=1)
    for option in fields(VaeConfig):
        name = "--" + option.name.replace("_", "-")
        parser.add_argument(name, type=type(option.default), default=option.default)
    chosen = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    work, crops = chosen.pop("work"), Crops(chosen.pop("crops"))
    start = load_model(path).vae if (path := chosen.pop("start_from")) else None
    torch.set_num_threads(chosen.pop("threads"))
    work.mkdir(parents=True, exist_ok=True)
    VaeTraining(work, crops, VaeConfig(**chosen), start).run()


if __name__ == "__main__":
    main()
