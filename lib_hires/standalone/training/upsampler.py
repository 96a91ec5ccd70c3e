"""`hires train-upsampler`: algorithm 1 of Self-Cascade, for any model that the standalone loads.

Only the feature upsampler's weights move. The loss is that of the model's own prediction (eps, or v
for models of v). Under `accelerate launch` every process computes its part of the same steps; a
step's examples depend on the seed and the step alone, so that the number of processes, the number
of parts and an interruption change nothing beyond rounding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from matplotlib.figure import Figure
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from lib_hires.feature_upsampler import (
    FeatureUpsampler,
    Upsampled,
    UpsamplerInfo,
    default_layers,
    layout_of,
)
from lib_hires.files import whole_file
from lib_hires.settings import Settings, SettingsError
from lib_hires.sizes import snap
from lib_hires.standalone import bundled
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.png import to_pil
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.training.upsampler_config import UpsamplerTraining
from lib_hires.standalone.training.upsampler_data import (
    Batch,
    Draw,
    DrawnScenes,
    Examples,
    ImageFolder,
    Images,
    drawn,
)
from lib_hires.standalone.world.model import speed_up
from lib_hires.upsampler_file import NamedUpsampler, write_upsampler

SHOWN = 200  # points of the plotted training loss, each the mean of the steps between
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """What the training has behind it; lives in its checkpoint."""

    step: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)  # steps done, loss of the last
    validation: list[tuple[int, float]] = field(default_factory=list)  # step, loss; 0 is without


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


def train_upsampler(
    out: Path,
    *,
    config: UpsamplerTraining,
    model_path: Path | None = None,
    data: Path | None = None,
    work: Path = Path("training-upsampler"),
    cache: Path | None = None,
) -> str:
    """Train until `config.steps` and write `out`; goes on from the checkpoint in `work`.

    model_path: None is the bundled model. data: a folder of captioned images; None are drawn
    scenes, for the bundled model only. cache: a folder for latents and features, computed once.
    Several machines must share `work`.
    Beside `out` its record (json) and its losses (png) are written. Returns a line about it, in
    other processes than the first an empty one.

    Raises SettingsError (or another ValueError) for what cannot be trained.
    """
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.accumulation
    )
    part = config.part(accelerator.num_processes)
    if data is None and model_path is not None:
        raise SettingsError("--data: expected a folder of captioned images for this model")
    on_cpu = accelerator.device.type == "cpu"
    dtype = torch.float32 if on_cpu else DTYPES[config.mixed_precision]
    model = load_model(model_path, device=accelerator.device, dtype=dtype)
    if on_cpu:
        speed_up(model.unet)
    if config.checkpointing:
        model.unet.enable_gradient_checkpointing()
    info = info_for(model, config, weights_hash(model_path or bundled.MODEL))
    examples, held_out = examples_for(model, info, config, data, cache)
    torch.manual_seed(config.seed)
    training = _Training(accelerator, model, FeatureUpsampler(info), examples, held_out, config)
    checkpoint = work / "checkpoint.safetensors"
    training.resume(checkpoint)
    training.run(checkpoint, work / "samples", part)
    summary = training.write(out) if accelerator.is_main_process else ""
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return summary


def info_for(model: LatentModel, config: UpsamplerTraining, model_hash: str) -> UpsamplerInfo:
    """What the file will say; raises ValueError for layers that the model does not have."""
    skips = layout_of(model.unet).skips
    try:
        wanted = tuple(int(layer) for layer in config.layers.split(",") if layer.strip())
        layers = wanted or default_layers(model.unet)
        channels = tuple(skips[layer].channels for layer in layers)
    except (ValueError, IndexError) as error:
        raise SettingsError(
            f"layers: expected some of 0 to {len(skips) - 1}, got {config.layers!r}"
        ) from error
    return UpsamplerInfo(
        family=model.family,
        base=model.name,
        base_hash=model_hash,
        layers=layers,
        channels=channels,
        pivot=config.pivot,
        scale=config.scale,
        width=config.width,
        version=version("hires-guidance"),
    )


def weights_hash(path: Path) -> str:
    """SHA-256 of a model's file, or of its U-Net's files where it is a folder."""
    files = sorted((path / "unet").glob("*.safetensors")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def examples_for(
    model: LatentModel,
    info: UpsamplerInfo,
    config: UpsamplerTraining,
    data: Path | None,
    cache: Path | None,
) -> tuple[Examples, int]:
    """All examples, and how many at their end are held out for validation."""
    height, width = (snap(side * config.scale, model.multiple) for side in model.native)
    images: Images
    if data is None:
        images = DrawnScenes(config.scenes + config.held_out, config.seed)
        held_out = config.held_out
    else:
        images = ImageFolder(data, (height, width))
        held_out = min(config.held_out, len(images) // 5)
    examples = Examples(
        model,
        images,
        large=(height, width),
        small=model.native,
        layers=info.layers,
        cache=cache,
        computed_as=[info.base_hash, config.mixed_precision, model.device.type],
    )
    return examples, held_out


class _Training:
    """One training: weights, optimizer and progress, in every process the same."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: LatentModel,
        upsampler: FeatureUpsampler,
        examples: Examples,
        held_out: int,
        config: UpsamplerTraining,
    ) -> None:
        self._accelerator, self._model, self._config = accelerator, model, config
        self._upsampler, self._examples = upsampler, examples
        self._count = len(examples.images) - held_out
        optimizer = torch.optim.AdamW(
            upsampler.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=0.01
        )
        self._objective = Objective(model, upsampler)
        self._prepared, self._optimizer = accelerator.prepare(self._objective, optimizer)
        self._progress = Progress()

    @property
    def _info(self) -> UpsamplerInfo:
        return replace(self._upsampler.info, steps=self._progress.step)

    # --- checkpoints ---

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, where there is one; of another upsampler raises ValueError."""
        if not path.exists():
            return
        try:
            with safe_open(path, "pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                metadata = opened.metadata()
            info, progress = (json.loads(metadata[key]) for key in ("info", "progress"))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise SettingsError(f"{path}: damaged, remove it to begin anew") from error
        if info != self._upsampler.info.metadata():
            raise SettingsError(f"{path}: of another upsampler; give another --work or remove it")
        weights = {
            name.removeprefix("weights."): value
            for name, value in tensors.items()
            if name.startswith("weights.")
        }
        self._upsampler.load_state_dict(weights)
        state = self._optimizer.state_dict()
        state["state"] = {
            index: {key: tensors[f"optimizer.{index}.{key}"] for key in ADAM_STATE}
            for index in state["param_groups"][0]["params"]
        }
        self._optimizer.load_state_dict(state)
        self._progress = Progress(**progress)

    def _save(self, path: Path) -> None:
        """Write a checkpoint so that a kill at any moment leaves the old one or the new one."""
        tensors = {f"weights.{name}": v for name, v in self._upsampler.state_dict().items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": values[key] for key in ADAM_STATE}
        metadata = {"info": json.dumps(self._upsampler.info.metadata())}
        metadata["progress"] = json.dumps(asdict(self._progress))
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: value.contiguous() for name, value in tensors.items()}
        with whole_file(path) as partial:
            save_file(whole, partial, metadata)

    # --- steps ---

    def run(self, checkpoint: Path, samples: Path, part: int) -> None:
        """Train to the end, saving and validating on the way."""
        config, progress = self._config, self._progress
        main = self._accelerator.is_main_process
        if progress.step == 0:
            self._validate(samples, part)
        bar = tqdm(
            total=config.steps, initial=progress.step, desc="upsampler", unit="step",
            disable=not main,
        )  # fmt: skip
        while progress.step < config.steps:
            loss = self._step(part)
            progress.step += 1
            progress.losses.append((progress.step, round(loss, 6)))
            bar.update()
            bar.set_postfix(loss=f"{np.mean([loss for _, loss in progress.losses[-50:]]):.4f}")
            finished = progress.step == config.steps
            if finished or progress.step % config.validate_every == 0:
                self._validate(samples, part)
            if main and (finished or progress.step % config.save_every == 0):
                self._save(checkpoint)
        bar.close()

    def _step(self, part: int) -> float:
        """One optimisation step; the loss over all parts and processes."""
        config, accelerator = self._config, self._accelerator
        for group in self._optimizer.param_groups:
            group["lr"] = config.rate_at(self._progress.step)
        wanted = drawn(config, self._progress.step, self._count)
        losses = []
        for number in range(config.accumulation):
            begin = (number * accelerator.num_processes + accelerator.process_index) * part
            with self._reduced_precision():
                batch = self._examples.batch(wanted[begin : begin + part])
            with accelerator.accumulate(self._prepared), self._objective.scope(batch):
                loss = self._prepared(batch).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self._upsampler.parameters(), 1.0)
                self._optimizer.step()
                self._optimizer.zero_grad()
            losses.append(loss.detach())
        return float(accelerator.reduce(torch.stack(losses).mean(), "mean"))

    def _reduced_precision(self) -> AbstractContextManager[Any]:
        """For what is not trained. Elsewhere than on a CPU the model's own dtypes say it all, and
        SDXL's VAE, which overflows in float16, stays as it was loaded."""
        on_cpu = self._accelerator.device.type == "cpu"
        return self._accelerator.autocast() if on_cpu else nullcontext()

    # --- validation ---

    def _validate(self, samples: Path, part: int) -> None:
        """The loss on the images held out, and sample images; by the main process."""
        step = self._progress.step
        if self._accelerator.is_main_process:
            if self._count < len(self._examples.images):
                self._progress.validation.append((step, round(self._held_out_loss(part), 6)))
            if self._config.samples:
                samples.mkdir(parents=True, exist_ok=True)
                self._sheet().save(samples / f"{step:07d}.png")
        self._accelerator.wait_for_everyone()

    @torch.no_grad()
    def _held_out_loss(self, part: int) -> float:
        """The mean loss with each image at four timesteps, the same ones every time."""
        indices = np.arange(self._count, len(self._examples.images)).repeat(4)
        n = len(indices)
        t = 1 + (np.arange(n) + 0.5) * self._config.pivot / n
        rng = np.random.default_rng(self._config.seed)
        wanted = Draw(indices, np.zeros(n, bool), rng.permutation(t.astype(int)), np.arange(n))
        losses = []
        for begin in range(0, n, part):
            with self._reduced_precision():
                batch = self._examples.batch(wanted[begin : begin + part])
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
        mine = NamedUpsampler("in training", "", self._upsampler)
        last = len(self._examples.images) - 1
        columns = []
        for n in range(min(config.samples, last + 1)):
            request = Request(prompt=self._examples.images.caption(last - n), seed=n)
            with self._reduced_precision():
                pair = [
                    list(Run(self._model, request, settings, upsampler).paint())[-1].images[0]
                    for upsampler in (None, mine)
                ]
            columns.append(torch.cat(pair, dim=1))
        return to_pil(torch.cat(columns, dim=2))

    # --- results ---

    def write(self, out: Path) -> str:
        """The file, its record and its plot; a line about them."""
        out.parent.mkdir(parents=True, exist_ok=True)
        write_upsampler(out, self._upsampler, self._info)
        record = {"info": self._info.metadata(), "config": self._config.values()}
        record |= {"processes": self._accelerator.num_processes}
        record |= {"loss": self._progress.losses, "validation": self._progress.validation}
        out.with_suffix(".json").write_text(json.dumps(record) + "\n")
        plot(out.with_suffix(".png"), self._progress.losses, self._progress.validation)
        validation = [loss for _, loss in self._progress.validation]
        held_out = ""
        if validation:
            held_out = f"; loss held out {validation[-1]:.5f}, without it {validation[0]:.5f}"
        return f"{out}: {self._progress.step} steps{held_out}"


ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


def plot(
    path: Path, losses: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]
) -> None:
    """The loss in training, and held out with its start (no upsampler) as a line."""
    figure = Figure(figsize=(7.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = np.array_split(np.array(losses), min(SHOWN, len(losses)))
    left.plot(*np.array([point.mean(0) for point in points]).T)
    left.set(xlabel="step", ylabel="loss", title="training")
    if validation:
        right.plot([step for step, _ in validation], [loss for _, loss in validation], marker=".")
        right.axhline(validation[0][1], linestyle="--", color="grey", label="without it")
        right.legend()
    right.set(xlabel="step", title="held out")
    figure.savefig(path, dpi=110)
