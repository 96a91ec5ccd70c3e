"""What the techniques cost on networks of real size, SD 1.5's and SDXL's, at 2048 and 4096 pixels.

Neither time nor memory depends on what a network has learned, so the weights are random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lib_hires.presets import preset_for
from lib_hires.settings import Plain, Settings
from lib_hires.standalone.latent_model import Family, LatentModel, assembled
from lib_hires.standalone.ldm_file import scaled_linear, standard_networks
from lib_hires.standalone.models import fast_dtype
from lib_hires.standalone.part_times import Timed, bound, ratio, time_run
from lib_hires.standalone.peak_memory import peak_memory

FAMILIES: tuple[Family, ...] = ("sd1", "sdxl")
SIDES = (2048, 4096)  # pixels
NATIVE = {"sd1": 512, "sd2": 768, "sdxl": 1024}
TOKENS, POOLED = 77, 1280  # of a prompt, and the width of SDXL's pooled embedding


class RandomModel(LatentModel):
    """A model that has learned nothing: its text embeddings are random too."""

    def _embed(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        random = partial(torch.randn, device=self.device, dtype=self.dtype)
        hidden = random(len(prompts), TOKENS, self.unet.config.cross_attention_dim)
        return hidden, random(len(prompts), POOLED) if self.family == "sdxl" else None


def random_model(family: Family, device: torch.device, dtype: torch.dtype) -> RandomModel:
    """A family's networks of real size, made on the device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # so that they never take twice their memory
    try:
        with torch.device(device):
            unet, vae = standard_networks(family)
    finally:
        torch.set_default_dtype(before)
    model = assembled(
        name=f"random {family}",
        family=family,
        prediction="eps",
        sample_size=(NATIVE[family] // 8,) * 2,
        alphas_cumprod=scaled_linear(),
        unet=unet,
        vae=vae,
        encoders=(),
        device=device,
        dtype=dtype,
        zero_empty_negative=False,
    )
    return RandomModel(**vars(model))


@dataclass(frozen=True)
class Case:
    """A way to the large picture; starts_large: its first picture has that size already."""

    name: str
    settings: dict[str, Plain]
    starts_large: bool = True


def cases(scale: float, native: int) -> list[Case]:
    """Plain sampling first, with which the others are compared."""
    target = "2x" if scale <= 2 else "4x"
    stages = [
        Case(name, dict(preset_for(purpose, native).values) | {"refine_factor": scale}, False)
        for name, purpose in (
            ("AP-LDM as published", f"{target}, AP-LDM as published"),
            ("refinement with UG", f"{target}, refinement with UG"),
        )
    ]
    return [
        Case("plain", {}),
        Case("UG", {"ug": True}),
        Case("UG in windows", {"ug": True, "ug_windows": "Hann"}),
        *stages,
    ]


def real_size_rows(
    device: torch.device, sides: Sequence[int], steps: int
) -> Iterator[dict[str, Any]]:
    """A row for every family, side and case, in half precision, each run once.

    A row has the ratio of its seconds to plain sampling's and that ratio's bound, seconds, the
    share of each part, and bytes at the peak beyond the loaded model. What does not fit says so.
    """
    for family in FAMILIES:
        model = random_model(family, device, fast_dtype(device.type))
        for side in sides:
            yield from rows_of(model, side, steps)


def rows_of(model: LatentModel, side: int, steps: int) -> Iterator[dict[str, Any]]:
    """The rows of one model and side, each run after two steps that warm its size up."""
    plain: list[Timed] = []
    time_run(model, Settings(), None, 2)
    for case in cases(side / model.native[0], model.native[0]):
        settings = Settings.from_values(case.settings)
        row = {"name": f"{model.name}, {side}x{side}, {case.name}", "settings": settings.changed()}
        size = (side, side) if case.starts_large else None
        try:
            if case.starts_large:
                time_run(model, settings, size, 2)
            timed, peak = _measured(model, settings, size, steps)
        except torch.OutOfMemoryError:
            yield row | {"failed": "out of memory"}
            continue
        if not case.settings:
            plain.append(timed)
        if plain:
            row |= {"ratio": ratio([timed], plain), "bound": bound([timed], plain)}
        yield row | _parts(timed) | {"memory": peak}


def _measured(
    model: LatentModel, settings: Settings, size: tuple[int, int] | None, steps: int
) -> tuple[Timed, int | None]:
    timed: list[Timed] = []
    peak = peak_memory(model.device, lambda: timed.append(time_run(model, settings, size, steps)))
    return timed[0], peak


def _parts(timed: Timed) -> dict[str, float]:
    shares = {
        part: sum(timed.parts.of(part)) / timed.seconds for part in ("unet", "encode", "decode")
    }
    return {"seconds": timed.seconds, **shares, "beside": 1 - sum(shares.values())}


def real_size_table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The rows as text."""
    heads = ("seconds", "ratio", "bound", "unet", "encode", "decode", "beside", "GiB")
    yield f"{'':44}" + "".join(f" {head:>8}" for head in heads)
    for row in rows:
        if "failed" in row:
            yield f"{row['name']:44} {row['failed']}"
            continue
        memory = row["memory"]
        values = {**row, "GiB": None if memory is None else memory / 2**30}
        cells = ("" if values.get(head) is None else f"{values[head]:.2f}" for head in heads)
        yield f"{row['name']:44}" + "".join(f" {cell:>8}" for cell in cells)
