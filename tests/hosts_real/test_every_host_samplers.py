"""Every sampler and schedule of every WebUI, in images of 64x64."""

from __future__ import annotations

import urllib.error

import pytest
from compatibility import shows

pytestmark = pytest.mark.host

SMALL = {"width": 64, "height": 64, "steps": 4}
NATIVE = {"options": {"hires_guidance_native_size": 32}}
UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
PFSA = {"pfsa": True, "pfsa_gamma": 0.1}
REFINE = {"refine": True, "refine_factor": 1.5, "refine_eta2": "0.5"}
COMMON_SAMPLERS = (
    "Euler", "Euler a", "Heun", "DPM++ 2M", "DPM++ SDE", "Restart", "LCM", "DDIM", "PLMS", "UniPC"
)  # fmt: skip
FEATURES = {
    "without weight": UG | PFSA | {"ug_theta": 0, "pfsa_gamma": 0},
    "UG": UG,
    "PFSA": PFSA,
    "refinement": UG | REFINE,
}
LEFT_OUT = {
    "UG": "Upsample Guidance was left out, because",
    "PFSA": "Attentive Guidance was left out, because",
    "refinement": "Upsample Guidance was left out, because",
}
"""The message under the image where a sampler cannot have a feature."""
CALLED = {"refinement": "UG within refinement"}
"""What is left out there, where it is not called as the feature is."""


def _sides(host) -> list[int]:
    """The latents' heights of the model's evaluations, in order."""
    return [size[0] for size, _ in host.evaluations()]


@pytest.fixture(scope="module")
def plain_images(host):
    """Of every sampler of the host's own list, by its name; RF stands for flow models."""
    names = [sampler["name"] for sampler in host.request("/sdapi/v1/samplers")]
    assert set(names) >= set(COMMON_SAMPLERS)
    return {
        name: host.generate(sampler_name=name, **SMALL, **NATIVE)
        for name in names
        if not name.endswith(" RF")
    }


def _check_sampler(host, generate, sampler, plain, feature) -> bool:
    """Whether the feature was left out, with a message."""
    before = host.state()
    made = generate(FEATURES[feature], sampler_name=sampler, fault=("record", 0))
    left_out = "note" in made.info
    assert not (left_out and sampler in COMMON_SAMPLERS)
    if left_out:
        assert LEFT_OUT[feature] in made.info
    if feature == "refinement":
        assert made.sizes == [(96, 96)]
    else:
        assert (made.pixels == plain.pixels) == (left_out or feature == "without weight")
    if feature == "UG" and not left_out:
        sides = _sides(host)
        assert all(small == 4 for large, small in zip(sides, sides[1:], strict=False) if large == 8)
    assert generate(sampler_name=sampler).pixels == plain.pixels
    assert host.state() == before
    return left_out


@shows("every sampler")
@pytest.mark.parametrize("feature", FEATURES)
def test_every_sampler(host, generate, plain_images, feature, partly):
    """What the feature does, or the message; then the plain image once more."""
    faults, without = {}, []
    for name, plain in plain_images.items():
        try:
            if _check_sampler(host, generate, name, plain, feature):
                without.append(name)
        except (AssertionError, urllib.error.HTTPError) as error:
            faults[name] = str(error)
    if without:
        named = ", ".join(without) if len(without) < 8 else "those that it is not known of"
        all_of = f"{len(without)} of {len(plain_images)} samplers"
        partly(f"{CALLED.get(feature, feature)} is left out, with a message, in {all_of}: {named}")
    assert not faults


@shows("every schedule type")
def test_every_schedule_type(host, generate):
    """With all three; nothing is left, nothing left out."""
    names = [schedule["label"] for schedule in host.request("/sdapi/v1/schedulers")]
    assert {"Karras", "SGM Uniform", "Simple"} < set(names)
    faults = {}
    for name in names:
        plain = generate(scheduler=name)
        try:
            made = generate(UG | PFSA | REFINE, scheduler=name)
            assert made.sizes == [(96, 96)]
            assert "note" not in made.info
            assert generate(scheduler=name).pixels == plain.pixels
        except (AssertionError, urllib.error.HTTPError) as error:
            faults[name] = str(error)
    assert not faults
