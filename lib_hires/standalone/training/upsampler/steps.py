"""The steps of training a feature upsampler: their loss and gradients, and the validation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from lib_hires.feature_upsampler import FeatureUpsampler, Upsampled
from lib_hires.settings import Settings
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.outputs import to_pil
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.training.loop import Progress
from lib_hires.standalone.training.upsampler.data import Batch, Draw, Examples, drawn
from lib_hires.standalone.training.upsampler_config import UpsamplerTraining
from lib_hires.upsampler_file import NamedUpsampler


class Objective(nn.Module):
    """The loss of a batch, inside `scope`; the upsampler's weights are its only parameters."""

    def __init__(self, model: LatentModel, upsampler: FeatureUpsampler) -> None:
        super().__init__()
        self._model = model  # not a module, so neither moved nor synchronised
        self._abar = model.alphas_cumprod.to(model.device)
        self.upsampler = upsampler

    def scope(self, batch: Batch) -> AbstractContextManager[None]:
        """In which forward and backward pass must run: checkpointing computes forward twice."""
        size = (batch.clean.shape[-2], batch.clean.shape[-1])
        return Upsampled(self._model.unet, self.upsampler, batch.features, size)

    def forward(self, batch: Batch) -> Tensor:
        """||prediction - target||² of each example, averaged over its values: (b,)."""
        abar = self._abar[batch.t][:, None, None, None]
        a, s = abar.sqrt(), (1 - abar).sqrt()
        noisy = a * batch.clean + s * batch.noise
        prediction = self._model.predict(noisy, batch.t, **batch.cond)
        is_v = self._model.prediction == "v"
        target = a * batch.noise - s * batch.clean if is_v else batch.noise
        return F.mse_loss(prediction.float(), target, reduction="none").mean((1, 2, 3))


class Steps:
    """What each step computes, in every process its part, and what is validated on the way."""

    def __init__(
        self,
        accelerator: Accelerator,
        objective: Objective,
        prepared: nn.Module,
        examples: Examples,
        held_out: int,
        config: UpsamplerTraining,
    ) -> None:
        """prepared: `objective`, as accelerate synchronises it. held_out: of the examples, at
        their end."""
        self._accelerator, self._objective, self._prepared = accelerator, objective, prepared
        self._examples, self._config = examples, config
        self._count = len(examples.images) - held_out
        self._part = config.part(accelerator.num_processes)

    def compute(self, progress: Progress) -> Mapping[str, Tensor]:
        """A step's loss over all parts and processes, and its gradients."""
        config, accelerator, part = self._config, self._accelerator, self._part
        wanted = drawn(config, progress.step, self._count)
        losses = []
        for number in range(config.accumulation):
            begin = (number * accelerator.num_processes + accelerator.process_index) * part
            with self._reduced_precision():
                batch = self._examples.batch(wanted[begin : begin + part])
            with accelerator.accumulate(self._prepared), self._objective.scope(batch):
                loss = self._prepared(batch).mean()
                accelerator.backward(loss)
            losses.append(loss.detach())
        return {"loss": accelerator.reduce(torch.stack(losses).mean(), "mean")}

    def _reduced_precision(self) -> AbstractContextManager[Any]:
        """For what is not trained. Elsewhere than on a CPU the model's own dtypes decide, and
        SDXL's VAE, which overflows in float16, stays as it was loaded."""
        on_cpu = self._accelerator.device.type == "cpu"
        return self._accelerator.autocast() if on_cpu else nullcontext()

    def validate(self, samples: Path, progress: Progress) -> None:
        """The loss on the images held out, and sample images; by the main process."""
        step = progress.step
        if self._accelerator.is_main_process:
            if self._count < len(self._examples.images):
                progress.validation.append((step, round(self._held_out_loss(), 6)))
            if self._config.samples:
                samples.mkdir(parents=True, exist_ok=True)
                self._sheet().save(samples / f"{step:07d}.png")
        self._accelerator.wait_for_everyone()

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """The mean loss with each image at four timesteps, the same ones every time."""
        indices = np.arange(self._count, len(self._examples.images)).repeat(4)
        n = len(indices)
        t = 1 + (np.arange(n) + 0.5) * self._config.pivot / n
        rng = np.random.default_rng(self._config.seed)
        wanted = Draw(indices, np.zeros(n, bool), rng.permutation(t.astype(int)), np.arange(n))
        losses = []
        for begin in range(0, n, self._part):
            with self._reduced_precision():
                batch = self._examples.batch(wanted[begin : begin + self._part])
            with self._accelerator.autocast(), self._objective.scope(batch):
                losses.append(self._objective(batch))
        return float(torch.cat(losses).mean())

    def _sheet(self) -> Image.Image:
        """Refined images in pairs of rows, without and with the upsampler; captions held out."""
        config = self._config
        settings = Settings.from_values(
            {
                "refine": True,
                "refine_method": "Pivot",
                "refine_pivot": config.pivot,
                "refine_factor": config.scale,
            }
        )
        mine = NamedUpsampler("in training", "", self._objective.upsampler)
        last = len(self._examples.images) - 1
        columns = []
        for n in range(min(config.samples, last + 1)):
            request = Request(prompt=self._examples.images.caption(last - n), seed=n)
            with self._reduced_precision():
                runs = [
                    Run(self._examples.model, request, settings, upsampler)
                    for upsampler in (None, mine)
                ]
                pair = [list(run.generate())[-1].images[0] for run in runs]
            columns.append(torch.cat(pair, dim=1))
        return to_pil(torch.cat(columns, dim=2))
