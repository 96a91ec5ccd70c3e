"""The files of AnimateDiff's family by their tensors' names and shapes, written out by hand here.

Full size, without values. The names of v3 are those that sd-webui-animatediff's loader wants, see
tests/hosts_real/test_real_webui_animatediff.py; the others differ as the table of
lib_hires/standalone/models/motion/files.py says.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_hires.standalone.models.motion import files

SD1, SDXL = (320, 640, 1280, 1280), (320, 640, 1280)
FILES = {  # widths, whether there is a middle block, positions, and HotShot's own names
    "AnimateDiff v1": (SD1, False, 24, False),
    "AnimateDiff v2": (SD1, True, 32, False),
    "AnimateDiff v3": (SD1, False, 32, False),
    "AnimateLCM": (SD1, True, None, False),
    "AnimateDiff SDXL beta": (SDXL, False, 32, False),
    "HotShot-XL": (SDXL, False, 24, True),
}


def file_of(widths, middle, positions, hotshot):
    """Tensors on the meta device by their names in a file."""
    places = [
        (f"{side}_blocks.{block}", width, layer)
        for side, ordered, layers in (("down", widths, 2), ("up", widths[::-1], 3))
        for block, width in enumerate(ordered)
        for layer in range(layers)
    ]
    places += [("mid_block", widths[-1], 0)] * middle
    state = {}
    for place, width, layer in places:
        name = f"{place}.motion_modules.{layer}.temporal_transformer"
        if hotshot:
            name = f"{place}.temporal_attentions.{layer}"
        state |= module_of(name, width, positions, "positional_encoding" if hotshot else "pe")
    return state


def module_of(name, width, positions, encoding):
    block = f"{name}.transformer_blocks.0"
    shapes = {f"{block}.ff.net.0.proj.weight": (8 * width, width)}
    shapes[f"{block}.ff.net.0.proj.bias"] = (8 * width,)
    shapes[f"{block}.ff.net.2.weight"] = (width, 4 * width)
    shapes[f"{block}.ff.net.2.bias"] = (width,)
    norms = [f"{name}.norm", f"{block}.norms.0", f"{block}.norms.1", f"{block}.ff_norm"]
    linear = [f"{name}.proj_in", f"{name}.proj_out"]
    for place in (0, 1):
        attention = f"{block}.attention_blocks.{place}"
        linear.append(f"{attention}.to_out.0")
        shapes |= {f"{attention}.to_{part}.weight": (width, width) for part in "qkv"}
        if positions:
            shapes[f"{attention}.pos_encoder.{encoding}"] = (1, positions, width)
    shapes |= {f"{part}.{kind}": (width,) for part in norms for kind in ("weight", "bias")}
    shapes |= {f"{part}.weight": (width, width) for part in linear}
    shapes |= {f"{part}.bias": (width,) for part in linear}
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("kind", FILES)
def test_every_tensor_has_its_place(kind):
    from diffusers import MotionAdapter

    widths, middle, positions, _ = FILES[kind]
    state = files._renamed(file_of(*FILES[kind]))
    config = files._configuration(Path(kind), state)
    assert config["block_out_channels"] == widths
    assert config["use_motion_mid_block"] == middle
    known = files.KINDS[len(widths), middle, config["motion_max_seq_length"]]
    assert known.name == kind
    with torch.device("meta"):
        adapter = MotionAdapter(**config | {"motion_max_seq_length": positions or 64})
    wanted = {
        name: value.shape
        for name, value in adapter.state_dict().items()
        if not name.endswith("pos_embed.pe")
    }
    found = {
        name: value.shape for name, value in state.items() if not name.endswith("pos_encoder.pe")
    }
    assert found == wanted


def test_the_counts_of_published_modules():
    """v1 has 417 M weights beside the positions, v2 36 M more in the middle, SDXL's beta 238 M."""
    sizes = {kind: sum(v.numel() for v in file_of(*FILES[kind]).values()) for kind in FILES}
    assert sizes["AnimateDiff v2"] - sizes["AnimateDiff v3"] == pytest.approx(36.2e6, rel=0.02)
    assert sizes["AnimateDiff v3"] == pytest.approx(417e6, rel=0.01)
    assert sizes["AnimateDiff SDXL beta"] == pytest.approx(238e6, rel=0.02)
