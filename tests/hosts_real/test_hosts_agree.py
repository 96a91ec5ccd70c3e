"""Images of several WebUIs side by side, of the same models, seeds and settings.

HIRES_WEBUIS names the WebUIs, each as FOLDER or FOLDER=PYTHON (without one: `venv/bin/python` in
the folder), with the system's path separator between them. Skipped where it is unset. They run one
after another, and each is compared with the first; `--log-cli-level=INFO` shows the numbers, which
are in values of 255. All round the noise to the model's timesteps ("quantization"), as Forge and
reForge always do.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.host

REQUEST = {
    "width": 128, "height": 128, "steps": 5, "scheduler": "Automatic",
    "options": {"hires_guidance_native_size": 64, "enable_quantization": True},
}  # fmt: skip
SAMPLERS = "Euler", "DPM++ 2M", "DDIM"

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
REFINE = UG | {"refine": True, "refine_factor": 2, "refine_eta2": "0.5"}
SETTINGS: dict[str, tuple[dict[str, Any] | None, str]] = {
    "plain": (None, ""),
    "UG": (UG, "plain"),
    "PFSA": (UG | {"pfsa": True, "pfsa_gamma": 0.1}, "UG"),
    "windows": (UG | {"ug_windows": "Hann"}, "UG"),
    "attention": (UG | {"ug_windows": "attention"}, "UG"),
    "refinement": (REFINE, "UG"),
    "upsampler": (REFINE | {"refine_upsampler": "mine"}, "refinement"),
}
"""The controls, and the setting beside which their own effect shows."""

LARGEST, MEAN = 2, 0.1
"""Two WebUIs' images may differ by that: rounding, carried through the steps."""


@pytest.fixture(scope="module")
def generated(webuis):
    """By folder, sampler and setting: what each WebUI answered. One runs at a time."""
    answers = {}
    for folder, start in webuis.items():
        with start() as host:
            answers[folder] = {
                sampler: {
                    name: host.generate(controls, sampler_name=sampler, **REQUEST)
                    for name, (controls, _) in SETTINGS.items()
                }
                for sampler in SAMPLERS
            }
    return answers


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_agree(generated, sampler, name):
    first, *others = (answers[sampler][name] for answers in generated.values())
    found = {}
    for folder, other in zip([*generated][1:], others, strict=True):
        assert "note" not in first.info + other.info
        largest, mean = found[folder] = _differences(first.images[0], other.images[0])
        logging.info("%s, %s, %s: largest %d, mean %.3f", folder, sampler, name, largest, mean)
    assert all(largest <= LARGEST and mean <= MEAN for largest, mean in found.values()), found


FAR = {"attention": 10}  # what it changes in the small models' images: 1.2 to 1.6 of 255


@pytest.mark.parametrize("name", [name for name, (_, beside) in SETTINGS.items() if beside])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_setting_does_far_more_than_the_images_may_differ(generated, sampler, name):
    """So that a WebUI that left it out would be seen."""
    first = next(iter(generated.values()))[sampler]
    beside = SETTINGS[name][1]
    _, mean = _differences(first[beside].images[0], first[name].images[0])
    logging.info("%s, %s: %.1f on average from %s", sampler, name, mean, beside)
    assert mean > FAR.get(name, 20) * MEAN


def _differences(one: Image.Image, other: Image.Image) -> tuple[int, float]:
    """The largest and the mean; `one` is enlarged to the other's size."""
    pair = (np.asarray(image, float) for image in (one.resize(other.size), other))
    difference = abs(np.subtract(*pair))
    return int(difference.max()), float(difference.mean())
