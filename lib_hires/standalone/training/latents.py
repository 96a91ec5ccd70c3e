"""Scenes encoded once: the stage `latents` of `hires train-demo`, and the latents read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib_hires.files import whole_file
from lib_hires.standalone.models.precision import fast_autocast
from lib_hires.standalone.training.autoencoder import load_vae, to_tensor
from lib_hires.standalone.training.stages import TrainingConfig
from lib_hires.standalone.world import model as demo
from lib_hires.standalone.world.scenes import VIEW_SHARES, draw, random_scene

SHARD = 500  # scenes a file


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
    scenes = [random_scene(rng, view=VIEW_SHARES) for _ in range(SHARD)]
    size, latents = demo.NATIVE_SIZE, []
    for k in range(0, SHARD, 4):  # small batches stay in the cache
        batch = to_tensor([np.asarray(draw(s, size, size)) for s in scenes[k : k + 4]])
        with fast_autocast():
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
        """Mean and deviation of each channel, (1, 4, 1, 1); fixed by the first call."""
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
