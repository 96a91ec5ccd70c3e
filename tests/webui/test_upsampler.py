"""Feature upsamplers in the stand-in host: the list, what is refused, and what they do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_unets import CHANNELS, ToyLdm

from lib_hires.feature_upsampler import FeatureUpsampler, UpsamplerInfo
from lib_hires.upsampler_file import read_upsampler, write_upsampler

REFINE = {"refine": True, "refine_eta2": "0.6"}
WITH_IT = REFINE | {"refine_upsampler": "mine"}
NATIVE = {"width": 64, "height": 64}


class Told(ToyLdm):
    """Says something else to each prompt."""

    def forward(self, x, timesteps, context):
        return super().forward(x + context.mean((1, 2))[:, None, None, None], timesteps / 1000)


def write(file: Path, *, zero: bool = False, **changes: object) -> None:
    info = UpsamplerInfo("sd1", "toy", "0" * 64, layers=(0, 1, 2, 3), channels=CHANNELS)
    torch.manual_seed(1)
    upsampler = FeatureUpsampler(replace(info, **changes)).requires_grad_(False)
    if not zero:
        for weight in upsampler.parameters():
            weight.copy_(torch.randn(weight.shape) / 2)
    write_upsampler(file, upsampler, upsampler.info)


@pytest.fixture
def folder(tmp_path) -> Path:
    from modules import paths_internal

    paths_internal.models_path = str(tmp_path)
    made = tmp_path / "hires-guidance"
    made.mkdir()
    write(made / "mine.safetensors")
    return made


@pytest.fixture
def host(folder):
    from host import Host
    from modules import scripts
    from modules.toy_model import ToyModel

    class SkipModel(ToyModel):
        def __init__(self):
            super().__init__()
            self.model.diffusion_model = Told().requires_grad_(False)

    yield Host(model=SkipModel)
    assert scripts.errors == []


def small_evaluations(calls: int) -> list[int]:
    """Rows of the calls at the first image's size that come after the first pass's `calls`."""
    from modules import shared

    evaluated = shared.loaded.sd_model.evaluated
    return [rows for size, rows in evaluated[calls:] if size == (8, 8)]


def close(one, other) -> bool:
    pairs = zip(one.images, other.images, strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DPM++ 2M", "DDIM", "UniPC"])
def test_it_changes_the_stage_and_costs_one_small_call(host, sampler):
    plain = host.generate(REFINE, sampler_name=sampler, **NATIVE)
    made = host.generate(WITH_IT, sampler_name=sampler, **NATIVE)
    assert made.messages == []
    assert not close(made, plain)
    if sampler == "Euler":
        assert small_evaluations(5) == [2]


def test_untrained_it_changes_no_bit(host, folder):
    plain = host.generate(REFINE, **NATIVE)
    write(folder / "mine.safetensors", zero=True)
    made = host.generate(WITH_IT, **NATIVE)
    assert torch.equal(made.images[0], plain.images[0])


def test_every_row_has_the_features_of_its_own_image_and_prompt(host):
    """Stacked or one after another, several prompts or images: the same images."""
    from modules import shared

    prompts = {"prompt": "a red house AND a blue sky :0.5"}
    together = host.generate(WITH_IT, **NATIVE, **prompts)
    shared.opts.batch_cond_uncond = False
    apart = host.generate(WITH_IT, **NATIVE, **prompts)
    assert small_evaluations(10) == [2, 1]
    assert close(together, apart)
    batch = host.generate(WITH_IT, **NATIVE, batch_size=2, **prompts)
    assert torch.allclose(batch.images[0], apart.images[0], rtol=0, atol=1e-4)
    assert not torch.allclose(batch.images[1], apart.images[0], rtol=0, atol=1e-2)


def test_upsample_guidance_and_several_stages_go_with_it(host):
    settings = WITH_IT | {"ug": True, "refine_method": "Pivot", "refine_factor": 4}
    made = host.generate(settings, **NATIVE)
    assert made.messages == []
    assert tuple(made.images[0].shape[-2:]) == (256, 256)
    from modules import shared

    parts = list(shared.loaded.sd_model.modules())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "sdxl"}, "mine was trained on toy (sdxl"),
        ({"scale": 4.0}, "mine was trained for stages of 4 times the sides, and none from 64x64"),
    ],
)
def test_one_that_does_not_fit_is_left_out_with_a_message(host, folder, changes, message):
    plain = host.generate(REFINE, **NATIVE)
    write(folder / "mine.safetensors", **changes)
    made = host.generate(WITH_IT, **NATIVE)
    assert len(made.messages) == 1
    assert message in made.messages[0]
    assert torch.equal(made.images[0], plain.images[0])


@pytest.mark.parametrize("name", ["another", "../mine", "mine.safetensors", "mine ["])
def test_only_names_of_the_list_are_taken(host, name):
    made = host.generate(REFINE | {"refine_upsampler": name}, **NATIVE)
    assert "expected the name of a feature upsampler (mine)" in made.messages[0]
    assert torch.equal(made.images[0], host.generate(**NATIVE).images[0])


def test_a_damaged_file_is_refused(host, folder):
    (folder / "mine.safetensors").write_bytes(b"nonsense")
    made = host.generate(WITH_IT, **NATIVE)
    assert "mine.safetensors: is not a safetensors file" in made.messages[0]


def test_png_info_keeps_name_and_hash_and_repeats(host, folder):
    made = host.generate(WITH_IT, **NATIVE)
    title = f"mine [{read_upsampler(folder / 'mine.safetensors')[1]}]"
    assert made.parameters["HiRes refine upsampler"] == title
    again = host.generate(infotext=made.parameters, **NATIVE)
    assert torch.equal(again.images[0], made.images[0])
    write(folder / "mine.safetensors", zero=True)
    changed = host.generate(infotext=made.parameters, **NATIVE)
    assert f"{title} is no longer here; mine is another file now" in changed.messages[0]


def test_pasting_shows_the_name_of_the_list(host):
    made = host.generate(WITH_IT, **NATIVE)
    readers = {c.elem_id: read for c, read in host.runners[0].infotext_fields}
    read = readers["script_txt2img_hires_guidance_refine_upsampler"]
    assert read(made.parameters) == "mine"
    assert read({"HiRes refine": "True"}) == "None"


def test_the_list_is_read_again_and_has_an_axis(host, folder):
    component = next(c for c in host.runners[0].inputs[1:] if c.elem_id.endswith("_upsampler"))
    assert component.choices == ["None", "mine"]
    write(folder / "later.safetensors")
    (folder / "large.safetensors").write_bytes(bytes(2 << 20))
    axis = next(axis for axis in host.axes if "Feature upsampler" in axis.label)
    assert axis.choices() == ["None", "later", "mine"]
    axis.confirm(None, ["None", "later"])
    with pytest.raises(RuntimeError, match="expected the name of a feature upsampler"):
        axis.confirm(None, ["never"])
