"""The stage `vae` of `hires train-demo`: the bundled model's VAE, trained as latent diffusion's.

Two phases: encoder and decoder by values and features (`plain_steps`), then the decoder alone, with
a critic, so that latents stay valid while other models train on them. A step's chance follows from
its number. WORK/vae holds detail.csv and a sheet every `sample_steps`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lib_hires.standalone.models.precision import fast_autocast
from lib_hires.standalone.training.autoencoder import CHECKPOINT, start_plainly, to_tensor, widths
from lib_hires.standalone.training.crops import SCALES, Crops
from lib_hires.standalone.training.loop import Every, Loop, Pace, Progress, averaged
from lib_hires.standalone.training.muon import Muon, Optimizers, inner_and_other
from lib_hires.standalone.training.vae_losses import (
    Critic,
    Perceptual,
    balance,
    feature_loss,
    hinge,
    mean_score,
    value_loss,
)
from lib_hires.standalone.world import model as demo
from lib_hires.standalone.world.octaves import octave_energies

log = logging.getLogger("hires_guidance")

EXAMPLES = 48  # crops that fix the features' deviations
SHOWN = 4  # crops of each scale on a sheet
ENDS = ("conv_in", "conv_out", "quant_conv")  # of encoder and decoder, in their weights' names


@dataclass(frozen=True)
class VaeConfig:
    """Everything that decides how the VAE comes out, beside the crops."""

    seed: int = 1
    multipliers: str = ",".join(map(str, demo.VAE_MULTIPLIERS))
    crop: int = 128
    batch: int = 4
    rate: float = 3e-3
    decoder_rate: float = 2e-4  # of the decoder in the second phase
    critic_rate: float = 2e-4
    plain_steps: int = 8_200  # the first phase
    steps: int = 11_200
    warmup_steps: int = 100
    decay_share: float = 0.25  # the last part of each phase, in which the rates fall to zero
    perceptual: float = 0.5
    adversarial: float = 0.8
    critic_lead: int = 300  # steps in which the critic learns before it is heeded
    fade_steps: int = 500  # in which the adversarial term comes in
    kl: float = 1e-4
    latent_noise: float = 0.01  # of the latents' deviation, so that decoding bears a U-Net's errors
    ema: float = 0.999
    log_steps: int = 25
    save_steps: int = 100
    sample_steps: int = 500


def train_vae(work: Path, crops: Crops, config: VaeConfig) -> Progress:
    """Train to `config.steps`, on from the checkpoint `work`/vae.pt where there is one."""
    return VaeTraining(work, crops, config).loop.run()


class VaeTraining:
    """One run: its networks, and the loop that trains them."""

    def __init__(self, work: Path, crops: Crops, config: VaeConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self._folder, self._crops = config, work / "vae", crops
        self.vae = demo.build_vae(widths(config.multipliers))
        start_plainly(self.vae)
        demo.speed_up(self.vae).train()
        self.average = averaged(self.vae, config.ema)
        examples = crops.windows(np.random.default_rng(config.seed), EXAMPLES, config.crop)
        self._perceptual = Perceptual(to_tensor(examples)).to(memory_format=torch.channels_last)
        self.critic = demo.speed_up(Critic(self._perceptual.widths)).train()
        self._noted: dict[str, Tensor] = {}
        self.loop = Loop(
            "vae",
            work / CHECKPOINT,
            pace=Pace(
                steps=config.steps,
                save=Every(steps=config.save_steps),
                look=Every(steps=config.sample_steps),
                window=config.log_steps,
            ),
            parts={"vae": self.vae, "critic": self.critic},
            averages={"vae": self.average},
            optimizer=self._optimizer(),
            compute=self.compute,
            rate_at=self.rates,
            look=lambda progress: self.show(progress.step),
            clip=lambda weights, most: nn.utils.clip_grad_norm_(self.vae.parameters(), most),
            config=asdict(config),
        )

    def _optimizer(self) -> Optimizers:
        """Muon for the VAE's inner weights; Adam for its other ones and for the critic."""
        c = self.config
        inner, other = inner_and_other(self.vae, ENDS)
        groups = [
            {"params": other, "lr": c.rate, "betas": (0.9, 0.99)},
            {"params": [*self.critic.parameters()], "lr": c.critic_rate, "betas": (0.5, 0.9)},
        ]
        return Optimizers(Muon(inner, c.rate), torch.optim.Adam(groups, fused=True))

    # --- one step ---------------------------------------------------------------------------------

    def rates(self, progress: Progress) -> list[float]:
        """Of Muon, Adam and the critic: warm-up from each phase's begin, constant, linear to 0."""
        c, step = self.config, progress.step

        def share(begin: int, end: int) -> float:
            if step < begin:
                return 0.0
            left = (end - step) / ((end - begin) * c.decay_share)
            return min(1.0, (step - begin + 1) / c.warmup_steps, left)

        critic = share(c.plain_steps - c.critic_lead, c.steps)
        if step < c.plain_steps:
            vae = share(0, min(c.plain_steps, c.steps))
        else:
            vae = share(c.plain_steps, c.steps) * c.decoder_rate / c.rate
        return [vae, vae, critic]

    def compute(self, progress: Progress) -> Mapping[str, Tensor]:
        """A step's losses by name; leaves the gradients in the VAE's and the critic's weights."""
        c, step = self.config, progress.step
        if step % c.save_steps == 0:
            self._crops.refresh()
        rng = np.random.default_rng([c.seed, 1, step])
        torch.manual_seed(int(rng.integers(2**62)))
        true = to_tensor(self._crops.windows(rng, c.batch, c.crop))
        if step == c.plain_steps:
            self._freeze_encoder()
        for part in (self.vae.encoder, self.vae.quant_conv):
            part.requires_grad_(step < c.plain_steps)
        self._noted = {}
        made, kl = self._reconstructed(true)
        gradient = self._gradient(made, true, step)
        if step < c.plain_steps:
            torch.autograd.backward([made, c.kl * kl], [gradient, None])
        else:
            made.backward(gradient)  # type: ignore[no-untyped-call]
        return self._noted

    def _reconstructed(self, true: Tensor) -> tuple[Tensor, Tensor]:
        """Images (b, 3, h, w), and the KL divergence of their latents from unit normals."""
        with fast_autocast():
            posterior = self.vae.encode(true).latent_dist
            latent = posterior.sample().float()
            mean, variance = posterior.mean.float(), posterior.var.float()
            spread = self.config.latent_noise * latent.detach().std((0, 2, 3), keepdim=True)
            latent = latent + spread * torch.randn_like(latent)
            made = self.vae.decode(latent.contiguous(memory_format=torch.channels_last)).sample
        kl = 0.5 * (mean**2 + variance - 1 - posterior.logvar.float()).mean()
        self._noted |= {"kl": kl, "deviation": variance.sqrt().mean() / mean.std()}
        return made.float(), kl

    def _gradient(self, made: Tensor, true: Tensor, step: int) -> Tensor:
        """The gradient of all losses of the images, at the images `made`; teaches the critic."""
        c = self.config
        values = value_loss(made, true, demo.VAE_FACTOR)
        with fast_autocast():
            features = self._perceptual(made)
            with torch.no_grad():
                true_features = self._perceptual(true)
            differences = feature_loss(features, true_features)
        losses = values + c.perceptual * differences
        self._noted |= {"loss": losses, "values": values, "features": differences}
        (gradient,) = torch.autograd.grad(losses, made, retain_graph=True)
        if step < c.plain_steps - c.critic_lead:
            return gradient
        self._teach_critic((true, true_features), (made, features))
        if step < c.plain_steps:
            return gradient
        self.critic.requires_grad_(False)
        with fast_autocast():
            score = mean_score(self.critic(made, features))
        (adversarial,) = torch.autograd.grad(-score, made)
        factor = balance(made, gradient, adversarial, self.vae.decoder.conv_out.weight)
        self._noted |= {"score": score, "factor": factor}
        fade_in = min(1.0, (step - c.plain_steps) / c.fade_steps)
        return gradient + fade_in * c.adversarial * factor * adversarial

    def _teach_critic(self, *sets: tuple[Tensor, list[Tensor]]) -> None:
        """The critic's gradients on true images and on results, each with their features."""
        self.critic.requires_grad_(True)
        images, features = zip(*sets, strict=True)
        maps = [torch.cat(each).detach() for each in zip(*features, strict=True)]
        with fast_autocast():
            loss = hinge(self.critic(torch.cat(images).detach(), maps))
        loss.backward()  # type: ignore[no-untyped-call]
        self._noted["critic"] = loss

    def _freeze_encoder(self) -> None:
        """The averaged encoder becomes the encoder, for good."""
        for part in ("encoder", "quant_conv"):
            averages = getattr(self.average.module, part).state_dict()
            getattr(self.vae, part).load_state_dict(averages)

    # --- to look at -------------------------------------------------------------------------------

    @torch.no_grad()
    def show(self, step: int) -> None:
        """Crops of each scale above their reconstructions, and what is left of their detail."""
        rows, line = [], {"step": step}
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
        folder = self._folder / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(folder / f"{step:06d}.png")
        log.info("vae: %s", line)
        with (self._folder / "detail.csv").open("a") as file:
            file.write(",".join(str(each) for each in line.values()) + "\n")
