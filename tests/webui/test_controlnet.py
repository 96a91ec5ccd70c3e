"""ControlNet at sizes that it has made no hints for, in the fake host."""

from __future__ import annotations

from contextlib import nullcontext, suppress

import pytest
import torch
from runs import Failure, fail_at, leftovers, raise_failure, same, sizes

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
REFINE = {"refine": True, "refine_eta2": "0.4"}


HINT = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def controlled():
    """A host with a ControlNet; `networks` are those of the runs since."""
    from controlnet_extension import ControlNetScript
    from host import Host
    from modules import scripts

    host = Host(ControlNetScript)
    host.networks = host.runners[0].scripts[-1].networks
    yield host
    assert scripts.errors == []


def test_controlnet_acts_at_every_size(controlled):
    settings = UG | REFINE
    plain, guided = controlled.generate(), controlled.generate(settings)
    unit = controlled.generate(hint=HINT)
    both = controlled.generate(settings, hint=HINT)
    assert both.messages == []
    assert not same(both, guided)
    assert not same(unit, plain)
    seen = controlled.networks[-1].seen
    assert {size for size, _, _ in seen} == {(8, 8), (16, 16), (32, 32)}
    assert all(acted and marked for _, acted, marked in seen)
    assert same(both, controlled.generate(settings, hint=HINT))
    assert same(unit, controlled.generate(hint=HINT))
    assert same(guided, controlled.generate(settings))
    assert same(plain, controlled.generate())
    assert leftovers() == 0


def test_controlnet_can_be_left_out_of_native_evaluations(controlled):
    both = controlled.generate(UG, hint=HINT)
    without = controlled.generate(UG | {"ug_controlnet": False}, hint=HINT)
    assert without.messages == []
    assert not same(both, without)
    seen = controlled.networks[-1].seen
    assert {(size, acted) for size, acted, _ in seen} == {((16, 16), True), ((8, 8), False)}
    assert all(marked for _, _, marked in seen)


@pytest.mark.parametrize("side", ["both", "first", "second"])
def test_controlnet_keeps_to_its_side_of_hires_fix(controlled, side):
    """128 and 256 with native evaluations at 64, nearer to the first, and a stage at 320."""
    settings = UG | REFINE | {"refine_factor": 1.25}
    made = controlled.generate(settings, hint=HINT, side=side, enable_hr=True)
    assert made.messages == []
    network = controlled.networks[-1]
    first = [acted for size, acted, _ in network.seen[:10]]
    later = [acted for size, acted, _ in network.seen[10:]]
    assert all(first) == (side != "second") and any(first) == (side != "second")
    assert all(later) == (side != "first") and any(later) == (side != "first")
    assert {size for size, _, _ in network.seen} == {(8, 8), (16, 16), (32, 32), (40, 40)}


def test_controlnets_hints_are_put_back_whatever_happens(controlled):
    states, plain = [], controlled.generate()
    for call in (2, 8):
        repair = fail_at(controlled, call, raise_failure)
        with suppress(Failure):
            controlled.generate(UG | REFINE, hint=HINT)
        repair()
        unit = controlled.networks[-1].control_params[0]
        states.append(unit._hint_cond.shape[-2:])
        assert unit.hr_hint_cond is None
        assert same(plain, controlled.generate())
    assert states == [(128, 128)] * 2
    assert leftovers() == 0


def test_an_unknown_controlnet_is_left_out_with_a_message(controlled):
    from controlnet_extension import Unit

    plain_init = Unit.__init__

    def renamed(self, *args):
        plain_init(self, *args)
        self.another_name = vars(self).pop("used_hint_inpaint_hijack")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unit, "__init__", renamed)
        made = controlled.generate(UG | REFINE, hint=HINT)
    assert "this version of it is not known" in made.messages[0]
    assert len(made.messages) == 1
    assert sizes(made) == {(256, 256)}
    seen = controlled.networks[-1].seen
    assert {size for size, acted, _ in seen if acted} == {(16, 16)}


@pytest.mark.parametrize("size", [(64, 96), (16, 24), (48, 80)])
def test_hints_are_resized_and_masks_stay_hard(size):
    from lib_hires.webui.sampling.controlnet import resized_hint

    hint = torch.cat([torch.rand(1, 3, 32, 48), (torch.rand(1, 1, 32, 48) > 0.5).float()], 1)
    resized = resized_hint(hint, size)
    assert resized.shape == (1, 4, *size)
    assert set(resized[:, 3].unique().tolist()) <= {0.0, 1.0}
    assert (resized[:, :3].mean() - hint[:, :3].mean()).abs() < 0.02
    assert torch.equal(resized_hint(hint, (32, 48)), hint)


def test_hints_are_reduced_as_latents_are():
    from lib_hires.resample import Reduction
    from lib_hires.webui.sampling.controlnet import resized_hint

    hint = torch.rand(1, 3, 32, 48).half()
    expected = Reduction.between((32, 48), (24, 40)).reduce(hint)
    assert torch.equal(resized_hint(hint, (24, 40)), expected.half())


def test_lllites_embeddings_are_made_anew_for_another_size():
    from types import SimpleNamespace

    from lib_hires.webui.sampling.controlnet import ControlNet

    part, sizes = SimpleNamespace(cond_emb=None), []

    class UNet:
        def forward(self, x):
            part.cond_emb = part.cond_emb or tuple(x.shape[-2:])
            sizes.append(part.cond_emb)

    used = "used_hint_cond", "used_hint_cond_latent", "used_hint_inpaint_hijack"
    names = {"_hint_cond": torch.rand(1, 3, 128, 128), "hr_hint_cond": None} | dict.fromkeys(used)
    unit = SimpleNamespace(**names, control_model=SimpleNamespace(modules={"attention": part}))
    unet = UNet()
    network = SimpleNamespace(model=unet, control_params=[unit])
    controlnet = ControlNet(network)
    with controlnet.fitting("text", True, True, print):
        for side in (16, 8, 16):
            with controlnet.native_scope() if side == 8 else nullcontext():
                unet.forward(torch.zeros(1, 4, side, side))
    assert sizes == [(16, 16), (8, 8), (16, 16)]


@pytest.mark.parametrize("hint", [torch.rand(1, 5, 16, 16), torch.rand(1, 1280), {"image": 1}])
def test_hints_that_are_no_images_are_left_alone(hint):
    from types import SimpleNamespace

    from lib_hires.webui.sampling.controlnet import ControlNet

    class UNet:
        def forward(self, x):
            seen.append(unit._hint_cond)

    used = "used_hint_cond", "used_hint_cond_latent", "used_hint_inpaint_hijack"
    names = {"_hint_cond": hint, "hr_hint_cond": None} | dict.fromkeys(used)
    unit, seen = SimpleNamespace(**names, control_model=None), []
    network = SimpleNamespace(model=UNet(), control_params=[unit])
    controlnet = ControlNet(network)
    with controlnet.fitting("text", True, True, print):
        network.model.forward(torch.zeros(1, 4, 16, 16))
        with controlnet.native_scope():
            network.model.forward(torch.zeros(1, 4, 8, 8))
    assert [found is hint for found in seen] == [True, True]
