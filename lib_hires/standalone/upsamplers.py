"""Feature upsamplers by name or file, for a run and for what repeats it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_hires.feature_upsampler import FeatureUpsampler
from lib_hires.settings import SettingsError
from lib_hires.sizes import Size
from lib_hires.upsampler_file import read_upsampler

BUNDLED_FOLDER = Path(__file__).parent / "bundled"


@dataclass(frozen=True, eq=False)
class Upsampler:
    """A feature upsampler under the name and short hash that a picture's text keeps of it."""

    name: str
    hash: str
    weights: FeatureUpsampler

    def about(self) -> dict[str, str]:
        """Plain values from which `repeated` finds it again."""
        return {"name": self.name, "hash": self.hash}


def load_upsampler(path: Path) -> Upsampler:
    """Raises UpsamplerError for a file that is missing or not whole."""
    weights, short_hash = read_upsampler(path)
    return Upsampler(path.name, short_hash, weights)


def repeated(about: Mapping[str, Any], given: Path | None) -> Upsampler | None:
    """The upsampler of a run that may repeat a picture: the one given, or the picture's own.

    about: what the picture says. Its own is looked for among the bundled files and in the working
    folder. Raises SettingsError where it is not there, or the file of its name is another one.
    """
    wanted = about.get("upsampler")
    if given is not None or wanted is None:
        return None if given is None else load_upsampler(given)
    name = Path(str(wanted["name"])).name
    for folder in (BUNDLED_FOLDER, Path()):
        if (folder / name).is_file():
            found = load_upsampler(folder / name)
            if found.hash == wanted["hash"]:
                return found
    raise SettingsError(
        f"--from: made with the feature upsampler {name} ({wanted['hash']}), which is not here; "
        "give its file with --refine-upsampler"
    )


def check_stages(upsampler: Upsampler, sizes: Sequence[Size]) -> None:
    """Raises SettingsError where it could serve none of the stages between these sizes."""
    info = upsampler.weights.info
    if len(sizes) == 1:
        raise SettingsError("--refine-upsampler: acts in refinement; add --refine")
    if not any(info.fits(before, after) for before, after in zip(sizes, sizes[1:], strict=False)):
        steps = " to ".join(f"{width}x{height}" for height, width in sizes)
        raise SettingsError(
            f"--refine-upsampler: {upsampler.name} was trained for stages of {info.scale:g} times "
            f"the sides, and none from {steps} is near that"
        )
