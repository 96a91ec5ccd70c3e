"""Progressive Refinement with the host's sampler, VAE, previews and progress bar."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import nodes
import torch
from torch import Tensor

from lib_hires.comfy.conditioning import scaled_conditioning
from lib_hires.comfy.features import with_small
from lib_hires.comfy.guidance import in_schedule
from lib_hires.comfy.model import MULTIPLE, sigma_at
from lib_hires.noise import draw, generators, stage_seed
from lib_hires.refinement import Remembering, Stage, StageResult, plan, refine
from lib_hires.settings import ProgressiveRefinement
from lib_hires.sizes import Size, count, shown

log = logging.getLogger("hires_guidance")

ONE_STEP_SAMPLER = "euler"
"""For runs of one step: every sampler's last step is Euler's."""

TILE_OVERLAP = 64  # pixels

KEPT = "hires-stage"  # of files with the stages of a run that did not finish


@dataclass(frozen=True, eq=False)
class Refinement:
    """One node's run. latent: the host's LATENT, a dictionary.

    workflow: what the host's Save Image takes besides the image.
    """

    model: Any
    vae: Any
    positive: Any
    negative: Any
    latent: dict[str, Any]
    settings: ProgressiveRefinement
    seed: int
    steps: int
    cfg: float
    sampler: str
    schedule: str
    workflow: dict[str, Any]

    @property
    def factor(self) -> int:
        """Pixels along a side of a latent's position."""
        return int(self.vae.spacial_compression_decode())

    @property
    def first(self) -> Size:
        """(height, width) of the first image in pixels."""
        height, width = self.latent["samples"].shape[-2:]
        return height * self.factor, width * self.factor

    def stages(self) -> tuple[Stage, ...]:
        """Raises SettingsError where the final size cannot be."""
        return plan(self.settings, self.first, multiple=MULTIPLE, factor=self.factor)

    def sigmas(self) -> Tensor:
        """The whole schedule, as the host's KSampler would take it."""
        return comfy.samplers.KSampler(
            self.model, self.steps, self.model.load_device, self.sampler, self.schedule, 1.0
        ).sigmas

    def run(self) -> tuple[dict[str, Any], list[Tensor]]:
        """The last stage's LATENT and every stage's IMAGE.

        Interruptions, and errors of memory, leave as the host raises them; the images of finished
        stages are then saved in the host's output folder. Raises ValueError for a latent that is
        not of images.
        """
        samples: Tensor = self.latent["samples"]
        if samples.ndim != 4:
            raise ValueError(
                "Progressive Refinement knows images, (batch, channels, height, width), and this "
                f"latent has {samples.ndim} axes"
            )
        decode = Remembering(self._decode)
        sampling = StageSampling(self)
        made: list[Tensor] = []
        try:
            for result in self._results(samples, decode, sampling.denoise):
                samples = result.latent
                made.append((decode(samples) / 2 + 0.5).movedim(1, -1))
        except BaseException:  # the host's interruption is not an Exception everywhere
            self._keep(made)
            raise
        return {**self.latent, "samples": samples}, made

    def _keep(self, made: Sequence[Tensor]) -> None:
        """Save the stages of a run that will not finish, as the host saves images."""
        for number, images in enumerate(made, 1):
            saved = nodes.SaveImage().save_images(images, KEPT, **self.workflow)
            names = ", ".join(image["filename"] for image in saved["ui"]["images"])
            log.warning("Progressive Refinement: stage %d is kept in %s.", number, names)

    def _results(
        self,
        samples: Tensor,
        decode: Callable[[Tensor], Tensor],
        denoise: Callable[[Tensor, Stage, Tensor], Tensor],
    ) -> Iterator[StageResult]:
        """The finished stages; where one gives no numbers, those before it, and a message."""
        results = refine(
            samples,
            self.stages(),
            decode=decode,
            encode=self._encode,
            denoise=denoise,
            factor=self.factor,
            colour_match=self.settings.colour_match,
        )
        finished = 0
        try:
            for result in results:
                finished += 1
                yield result
        except FloatingPointError as error:
            if not finished:
                raise
            log.error("%s; the result is that of stage %d.", error, finished)

    def _tiles(self, unit: int) -> dict[str, int]:
        """The tiles that the settings wish; unit: pixels in each of the numbers."""
        tile = self.settings.tile
        overlap = min(TILE_OVERLAP, tile // 4)
        return {"tile_x": tile // unit, "tile_y": tile // unit, "overlap": overlap // unit}

    def _decode(self, latent: Tensor) -> Tensor:
        """(b, c, h, w) to (b, 3, H, W) in [-1, 1]."""
        if self.settings.tile:
            image = self.vae.decode_tiled(latent, **self._tiles(self.factor))
        else:
            image = self.vae.decode(latent)
        return image.movedim(-1, 1) * 2 - 1

    def _encode(self, image: Tensor) -> Tensor:
        """(b, 3, H, W) in [-1, 1] to (b, c, h, w)."""
        pixels = (image / 2 + 0.5).movedim(1, -1)
        if self.settings.tile:
            return self.vae.encode_tiled(pixels, **self._tiles(1))
        return self.vae.encode(pixels)


class StageSampling:
    """Samples the stages of one run with the host's sampler and one progress bar for all."""

    def __init__(self, run: Refinement) -> None:
        self._run = run
        sigmas = run.sigmas()
        sampling = run.model.get_model_object("model_sampling")
        self._sigmas = {
            stage.number: torch.tensor(
                stage.times(sigmas.tolist(), lambda timestep: sigma_at(sampling, timestep))
            )
            for stage in run.stages()
        }
        self._model = in_schedule(run.model, len(sigmas) - 1)
        self._total = sum(len(sigmas) - 1 for sigmas in self._sigmas.values())
        self._progress = latent_preview.prepare_callback(run.model, self._total)
        self._done = 0  # steps

    def denoise(self, latent: Tensor, stage: Stage, before: Tensor) -> Tensor:
        """Renoise the upsampled latent (b, c, h, w) as far as the stage goes, and sample it."""
        run, sigmas = self._run, self._sigmas[stage.number]
        steps, done = len(sigmas) - 1, self._done
        log.info(
            "Progressive Refinement: stage %d at %s in %s",
            stage.number,
            shown(stage.size),
            count(steps, "step"),
        )

        def after_step(step: int, denoised: Tensor, state: Tensor, _: int) -> None:
            self._progress(done + step, denoised, state, self._total)

        conds = (
            scaled_conditioning(conditioning, stage.size, run.first)
            for conditioning in (run.positive, run.negative)
        )
        result: Tensor = comfy.sample.sample_custom(
            with_small(self._model, before),
            draw(generators(self._seeds(len(latent)), stage.number), tuple(latent.shape[1:])),
            run.cfg,
            comfy.samplers.sampler_object(run.sampler if steps > 1 else ONE_STEP_SAMPLER),
            sigmas,
            *conds,
            latent,
            noise_mask=run.latent.get("noise_mask"),
            callback=after_step,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=stage_seed(run.seed, stage.number),
        )
        self._done += steps
        return result

    def _seeds(self, images: int) -> Sequence[int]:
        """The seed of each image: an image's noise is its own, whatever the batch."""
        indices = self._run.latent.get("batch_index", range(images))
        return [self._run.seed + index for index in indices]
