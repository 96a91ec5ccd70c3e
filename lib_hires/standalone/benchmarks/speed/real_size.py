"""What the techniques cost on networks of real size, SD 1.5's and SDXL's, at 2048 and 4096 pixels.

Neither time nor memory depends on what a network has learned, so the weights are random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lib_hires.presets import TILE, WHOLE, preset_for
from lib_hires.settings import Plain, Settings
from lib_hires.standalone.benchmarks.memory import peak_memory
from lib_hires.standalone.benchmarks.speed.timing import Timed, bound, ratio, time_run
from lib_hires.standalone.models import fast_dtype
from lib_hires.standalone.models.latent import Family, LatentModel, assembled
from lib_hires.standalone.models.ldm import standard_networks
from lib_hires.standalone.models.schedule import scaled_linear

FAMILIES: tuple[Family, ...] = ("sd1", "sdxl")
SIDES = (2048, 4096)  # pixels
NATIVE = {"sd1": 512, "sdxl": 1024}
WARM_UP = 10  # steps, so that every stage has one
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
class Way:
    """A way to the large image; starts_large: its first image has that size already."""

    name: str
    settings: dict[str, Plain]
    starts_large: bool = True


def ways(scale: float) -> list[Way]:
    """Plain sampling first, with which the others are compared."""
    target = "2x" if scale <= 2 else "4x"

    def refined(name: str, purpose: str, **more: Plain) -> Way:
        values = preset_for(f"{target}, {purpose}").values
        return Way(name, {**values, "refine_factor": scale, **more}, starts_large=False)

    return [
        Way("plain", {}),
        Way("UG", {"ug": True, "ug_eta": 1, "ug_cadence": 1}),
        refined("AP-LDM's settings", "AP-LDM as published"),
        refined("refinement with UG", "refinement with UG"),
        refined("the same in windows", "refinement with UG", ug_windows="Hann"),
    ]


def real_size_rows(
    device: torch.device, sides: Sequence[int], steps: int
) -> Iterator[dict[str, Any]]:
    """A row for every family, side and way, in half precision; device: a CUDA one."""
    dtype = fast_dtype(device.type)
    card = {"card": torch.cuda.get_device_name(device), "dtype": str(dtype).removeprefix("torch.")}
    with torch.cuda.device(device):  # whose work is waited for
        for family in FAMILIES:
            model = random_model(family, device, dtype)
            for side in sides:
                for row in rows_of(model, side, steps):
                    yield row | card
            del model


def rows_of(model: LatentModel, side: int, steps: int) -> Iterator[dict[str, Any]]:
    """The rows of one model and side, each of one run, after a shorter one that warms it up.

    A row has the ratio of its seconds to plain sampling's and that ratio's bound, seconds, the
    share of each part, and bytes at the peak beyond the loaded model; or why the run failed.
    """
    plain: list[Timed] = []
    for way in ways(side / model.native[0]):
        settings = Settings.from_values(way.settings)
        row = {"name": f"{model.name}, {side}x{side}, {way.name}", "settings": settings.changed()}
        run = partial(
            time_run,
            model,
            settings,
            (side, side) if way.starts_large else None,
            tile=TILE if side > WHOLE else 0,
        )
        try:
            run(min(steps, WARM_UP))
            timed, peak = _measured(model, partial(run, steps))
        except (RuntimeError, FloatingPointError) as error:  # such as too little memory
            row |= {"failed": str(error).partition("\n")[0]}
        else:
            if not way.settings:
                plain.append(timed)
            if plain:
                row |= {"ratio": ratio([timed], plain), "bound": bound([timed], plain)}
            row |= {**_parts(timed), "memory": peak}
        yield row


def _measured(model: LatentModel, run: Callable[[], Timed]) -> tuple[Timed, int | None]:
    """What `run` returns, and its peak of memory in bytes where the system reports it."""
    timed: list[Timed] = []
    peak = peak_memory(model.device, lambda: timed.append(run()))
    return (timed or [run()])[0], peak


def _parts(timed: Timed) -> dict[str, float]:
    shares = {
        part: sum(timed.parts.of(part)) / timed.seconds for part in ("unet", "encode", "decode")
    }
    return {"seconds": timed.seconds, **shares, "rest": 1 - sum(shares.values())}


def skipped(sides: Sequence[int]) -> dict[str, Any]:
    """The row that stands where there is no card."""
    images = " and ".join(f"{side}x{side}" for side in sides)
    return {"name": f"SD 1.5 and SDXL, {images}", "failed": "skipped: no CUDA device is here"}


def real_size_table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The rows as text; the parts are shares of the seconds, "rest" what is none of them."""
    if rows and "card" in rows[0]:
        yield "{card}, {dtype}, each run once".format(**rows[0])
    columns = ("seconds", "ratio", "bound", "unet", "encode", "decode", "rest", "GiB")
    yield f"{'':44}" + "".join(f" {name:>8}" for name in columns)
    for row in rows:
        if "failed" in row:
            yield f"{row['name']:44} {row['failed']}"
            continue
        memory = row["memory"]
        values = {**row, "GiB": None if memory is None else memory / 2**30}
        cells = ("" if values.get(name) is None else f"{values[name]:.2f}" for name in columns)
        yield f"{row['name']:44}" + "".join(f" {cell:>8}" for cell in cells)
