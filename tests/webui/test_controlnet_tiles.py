"""ControlNet's hints where another extension evaluates tiles, as Tiled Diffusion does.

It puts each tile's part of the hint on the unit and leaves the last one there. What is looked at is
the hint that the unit uses: a network of random weights does the same on both halves of the image.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib_hires.webui.sampling.controlnet import ControlNet


class Unit:
    """The attributes of sd-webui-controlnet's ControlParams, with its setter of `hint_cond`."""

    def __init__(self, hint):
        self._hint_cond, self.hr_hint_cond, self.control_model = hint, None, nn.Identity()
        self.used_hint_cond = self.used_hint_cond_latent = self.used_hint_inpaint_hijack = None

    @property
    def hint_cond(self):
        return self._hint_cond

    @hint_cond.setter
    def hint_cond(self, hint):
        self._hint_cond, self.used_hint_cond, self.used_hint_cond_latent = hint, None, None


class UNet:
    """Takes notes of (latent side, shape of the hint, its mean) of each call."""

    current_sampling_percent = 0.0

    def __init__(self, unit):
        self.unit, self.seen = unit, []

    def forward(self, x):
        if self.unit.used_hint_cond is None:
            self.unit.used_hint_cond = self.unit.hint_cond
        hint = self.unit.used_hint_cond
        self.seen.append((x.shape[-1], tuple(hint.shape), round(float(hint.mean()), 2)))


LARGE = 64
WHOLE = torch.zeros(1, 3, 8 * LARGE, 8 * LARGE)
WHOLE[..., 4 * LARGE :] = 1


def evaluate_tiles(unit, unet, side):
    """Black, half and white tiles of the first row, cond and uncond together."""
    for left in range(0, LARGE - side + 1, side // 2):
        part = WHOLE[..., : 8 * side, 8 * left : 8 * (left + side)]
        unit.hint_cond = part.repeat(2, 1, 1, 1)
        unet.forward(torch.zeros(2, 4, side, side))


def made(unit):
    unet = UNet(unit)
    return unet, ControlNet(SimpleNamespace(model=unet, control_params=[unit]))


@pytest.mark.parametrize("side", [32, 40])
@pytest.mark.parametrize("native", [True, False])
def test_tiles_keep_their_parts_and_the_native_evaluation_has_the_whole_hint(side, native):
    unit = Unit(WHOLE)
    unet, controlnet = made(unit)
    evaluate_tiles(unit, unet, side)
    alone = list(unet.seen)
    unet.seen.clear()
    unit.hint_cond = WHOLE
    if side == 32:
        assert [mean for *_, mean in alone] == [0, 0.5, 1]
    for _ in range(2):  # the second sampling finds the first one's last tile on the unit
        with controlnet.fitting("text", True, True, print):
            for _ in range(2):
                evaluate_tiles(unit, unet, side)
                assert unet.seen == alone
                unet.seen.clear()
                if native:
                    with controlnet.native_scope():
                        unet.forward(torch.zeros(2, 4, 32, 32))
                    assert unet.seen == [(32, (1, 3, 256, 256), 0.5)]
                    unet.seen.clear()


def test_a_stage_has_the_whole_hint_after_tiles():
    unit = Unit(WHOLE)
    unet, controlnet = made(unit)
    with controlnet.fitting("text", False, True, print):
        evaluate_tiles(unit, unet, 32)
    unet.seen.clear()
    with controlnet.fitting("stage", False, True, print):
        unet.forward(torch.zeros(2, 4, 96, 96))
    assert unet.seen == [(96, (1, 3, 768, 768), 0.5)]


def test_left_out_of_native_evaluations_it_still_acts_on_tiles_of_that_size():
    unit = Unit(WHOLE)
    unet, controlnet = made(unit)
    acting = []

    def forward(x):
        acting.append(len(controlnet._network.control_params))

    unet.forward = forward
    with controlnet.fitting("text", True, False, print):
        evaluate_tiles(unit, unet, 32)
        with controlnet.native_scope():
            unet.forward(torch.zeros(2, 4, 32, 32))
    assert acting == [1, 1, 1, 0]


def test_a_run_has_one_controlnet(monkeypatch):
    """Made anew only where the extension has hooked the U-Net anew."""
    from lib_hires.run.record import RunRecord
    from lib_hires.webui.run_state import HostRun, RunState
    from lib_hires.webui.sampling.controlnet import controlnet_of

    unit = Unit(WHOLE)
    network = SimpleNamespace(model=UNet(unit), control_params=[unit])
    script = SimpleNamespace(title=lambda: "ControlNet", latest_network=network)
    p = SimpleNamespace(scripts=SimpleNamespace(alwayson_scripts=[script]))
    run = HostRun.begin(p, RunState(RunRecord(float)))
    first = controlnet_of(run)
    assert controlnet_of(run) is first
    script.latest_network = SimpleNamespace(model=UNet(unit), control_params=[unit])
    assert controlnet_of(run) is not first
