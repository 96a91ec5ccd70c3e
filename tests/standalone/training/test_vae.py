"""Training the VAE: its losses in closed form, and what a run keeps to while it goes on."""

import numpy as np
import pytest
import torch
from torch import nn

from lib_hires.standalone.training import vae as training_vae
from lib_hires.standalone.training.autoencoder import load_vae
from lib_hires.standalone.training.crops import SIDE, Crops
from lib_hires.standalone.training.loop import Progress
from lib_hires.standalone.training.vae import VaeConfig, VaeTraining
from lib_hires.standalone.training.vae_losses import (
    Critic,
    Perceptual,
    balance,
    feature_loss,
    hinge,
    mean_score,
    value_loss,
)

SMALL = {"multipliers": "1,1,1,1", "crop": 32, "batch": 1, "log_steps": 1, "sample_steps": 100}


@pytest.fixture
def crops(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (240, SIDE, SIDE, 3), dtype=np.uint8)
    np.save(tmp_path / "0000.npy", pixels)
    return Crops(tmp_path)


def run(work, crops, **options):
    work.mkdir(exist_ok=True)
    training = VaeTraining(work, crops, VaeConfig(**(SMALL | options)))
    training.loop.run()
    return training


def weights(part):
    return torch.cat([each.detach().flatten() for each in part.parameters()])


@pytest.fixture(autouse=True)
def little_to_look_at(monkeypatch):
    """Sheets, of which a run draws one at its end, cost more than a run of so few steps."""
    monkeypatch.setattr(training_vae, "EXAMPLES", 3)
    monkeypatch.setattr(training_vae, "SHOWN", 1)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- losses ---------------------------------------------------------------------------------------


def test_values_and_their_means_over_a_latent():
    true = torch.zeros(1, 3, 8, 8)
    assert value_loss(true + 0.5, true, 8) == pytest.approx(1.0)  # no colour
    red = torch.tensor([0.5, 0, 0]).view(1, 3, 1, 1)  # its colour: 1/3, -1/6, -1/6
    assert value_loss(true + red, true, 8) == pytest.approx(1 / 6 + 1 / 6 + 2 * 2 / 9)
    sign = torch.ones(8, 8)
    sign[::2] = -1
    assert value_loss(true + 0.5 * sign, true, 8) == pytest.approx(0.5)  # the mean is right


def test_hinge_is_zero_for_a_critic_that_is_sure_and_one_for_one_that_knows_nothing():
    sure = torch.tensor([2.0, -2.0]).view(2, 1, 1, 1)
    assert hinge([sure, sure]) == 0
    assert hinge([torch.zeros(2, 1, 3, 3)]) == 1
    assert hinge([sure, torch.zeros(2, 1, 3, 3)]) == pytest.approx(0.5)


def test_every_branch_of_the_critic_counts_alike_and_gives_gradients():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    network = Perceptual(images.detach())
    critic = Critic(network.widths)
    scores = critic(images, network(images))
    assert len(scores) == 1 + len(network.widths)
    expected = np.mean([float(each.detach().mean()) for each in scores])
    score = mean_score(scores)  # of the branches, not of their places
    assert float(score.detach()) == pytest.approx(expected, abs=1e-6)
    (gradient,) = torch.autograd.grad(score, images)
    assert gradient.abs().sum() > 0


def test_features_of_equal_images_agree_and_blur_is_worse_than_less_blur():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    network = Perceptual(image)
    true = network(image)

    def loss(by):
        small = nn.functional.avg_pool2d(image, by)
        return feature_loss(network(nn.functional.interpolate(small, scale_factor=by)), true)

    assert feature_loss(network(image), true) == 0
    assert 0 < loss(2) < loss(4)


def test_balance_makes_two_gradients_equally_long_at_the_last_weights():
    last = nn.Conv2d(2, 3, 3, padding=1)
    images = last(torch.rand(1, 2, 8, 8))
    main, other = torch.rand_like(images), 7 * torch.rand_like(images)
    factor = balance(images, main, other, last.weight)
    lengths = [
        torch.autograd.grad(images, last.weight, each, retain_graph=True)[0].norm()
        for each in (main, factor * other)
    ]
    assert float(lengths[0]) == pytest.approx(float(lengths[1]), rel=1e-3)


def test_rates_warm_up_and_fall_to_zero_in_each_phase(tmp_path, crops):
    """The VAE's to 40 and from there at a quarter of the rate; the critic's from 30 on."""
    options = {"plain_steps": 40, "critic_lead": 10, "warmup_steps": 10, "decay_share": 0.5}
    options |= {"rate": 4e-3, "decoder_rate": 1e-3}
    training = VaeTraining(tmp_path, crops, VaeConfig(**(SMALL | options), steps=100))
    found = {at: training.rates(Progress(at)) for at in (0, 9, 20, 30, 39, 40, 49, 70, 85, 100)}
    muon, adam, critic = zip(*found.values(), strict=True)
    expected = [0.1, 1, 1, 0.5, 0.05, 0.025, 0.25, 0.25, 0.125, 0]
    assert muon == adam == pytest.approx(expected)
    assert critic == pytest.approx([0, 0, 0, 0.1, 1, 1, 1, 30 / 35, 15 / 35, 0])
    training.config = VaeConfig(**(SMALL | options), steps=20)  # fewer than the first phase has
    assert training.rates(Progress(15)) == pytest.approx([0.5, 0.5, 0])


def test_muon_trains_what_lies_inside_and_adam_the_rest(tmp_path, crops):
    training = VaeTraining(tmp_path, crops, VaeConfig(**SMALL))
    names = {id(each): name for name, each in training.vae.named_parameters()}
    muon, adam, critic = training.loop._optimizer.param_groups
    inner = {names[id(each)] for each in muon["params"]}
    assert {
        "encoder.down_blocks.0.resnets.0.conv1.weight",
        "decoder.mid_block.attentions.0.to_q.weight",
    } <= inner
    others = {names[id(each)] for each in adam["params"]}
    ends = {
        f"{coder}.conv_{end}.weight" for coder in ("encoder", "decoder") for end in ("in", "out")
    }
    ends |= {"quant_conv.weight", "post_quant_conv.weight"}
    weights = {name for name in others if training.vae.get_parameter(name).dim() > 1}
    assert weights == ends and inner | others == set(names.values())
    assert {id(each) for each in critic["params"]} == {id(p) for p in training.critic.parameters()}


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_ends_where_one_without_a_stop_does(tmp_path, crops):
    """And in the second phase the encoder is the averaged one and stays."""
    options = {"plain_steps": 2, "critic_lead": 1, "warmup_steps": 1, "decay_share": 0.01}
    options |= {"ema": 0.5, "decoder_rate": 1e-3}
    whole = run(tmp_path / "whole", crops, steps=4, **options)
    first = run(tmp_path / "parts", crops, steps=2, **options)
    encoder, decoder = (weights(getattr(first.average.module, n)) for n in ("encoder", "decoder"))
    assert not torch.equal(encoder, weights(first.vae.encoder))
    resumed = run(tmp_path / "parts", crops, steps=4, **options)
    for name in ("vae", "average", "critic"):
        torch.testing.assert_close(
            weights(getattr(resumed, name)), weights(getattr(whole, name)), atol=0, rtol=0
        )
    for vae in (resumed.vae, resumed.average.module, load_vae(tmp_path / "parts")):
        torch.testing.assert_close(weights(vae.encoder), encoder, atol=1e-6, rtol=1e-5)
        assert not torch.equal(weights(vae.decoder), decoder)
    curve = resumed.loop.progress.losses
    assert [step for step, *_ in curve] == [1, 2, 3, 4]
    assert ["critic" in losses for *_, losses in curve] == [False, True, True, True]
    assert ["score" in losses for *_, losses in curve] == [False, False, True, True]
    assert [losses for *_, losses in curve] == [losses for *_, losses in whole.loop.progress.losses]
    rows = (tmp_path / "parts" / "vae" / "detail.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["2", "4"]  # where a run ended


@pytest.mark.slow
def test_a_run_learns(tmp_path, crops):
    """On grey crops alone it must come near them."""
    crops._shards = {name: shard * 0 + 200 for name, shard in crops._shards.items()}
    training = run(tmp_path, crops, steps=10, warmup_steps=1)
    values = [losses["values"] for *_, losses in training.loop.progress.losses]
    assert np.mean(values[-3:]) < 0.5 * values[0]
