"""The one loop of all trainings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lib_hires.settings import SettingsError
from lib_hires.standalone.training.loop import (
    Every,
    Loop,
    Pace,
    Panel,
    Progress,
    adamw,
    averaged,
    descending,
    plot,
    save,
)
from lib_hires.standalone.training.stages import TrainingConfig, run_stage


def toy_stage(path: Path, minutes: float) -> tuple[Progress, nn.Module, nn.Module, list[float]]:
    """Of one weight matrix and chance; returns also its average and the numbers drawn."""
    torch.manual_seed(0)
    part, rng, drawn = nn.Linear(2, 1), np.random.default_rng(0), []
    average = averaged(part, 0.999)

    def loss_of(progress: Progress) -> Tensor:
        drawn.append(float(rng.random()))
        return part(torch.full((1, 2), drawn[-1])).square().mean()

    progress = run_stage(
        "toy", path, TrainingConfig(), minutes, rates={"p": 1e-2}, parts={"p": part},
        averages={"p": average}, rng=rng, loss_of=loss_of, look=lambda step: None,
    )  # fmt: skip
    return progress, part, average.module, drawn


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Weights, averages, steps and chance come back from the checkpoint."""
    path = tmp_path / "toy.pt"
    first, part, average, drawn = toy_stage(path, 0.002)
    again, same_part, same_average, nothing = toy_stage(path, 0.0)
    assert again.step == first.step > 0
    assert nothing == []
    assert torch.equal(part.weight, same_part.weight)
    assert torch.equal(average.weight, same_average.weight)
    assert not torch.equal(part.weight, average.weight)
    more, *_, later = toy_stage(path, first.seconds / 60 + 0.002)
    assert more.step > first.step
    expected = np.random.default_rng(0).random(len(drawn) + len(later))
    assert drawn + later == expected.tolist()


class Toy:
    """A loop of a few steps over one weight, whose k-th loss is `losses[k]` times it."""

    def __init__(self, path: Path, losses: list[float], **options: object) -> None:
        self.part = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.part.weight)
        self.looks: list[int] = []
        pace = options.pop("pace", Pace(steps=len(losses), window=2))
        self.average = averaged(self.part, 0.5)
        self.loop = Loop(
            "toy",
            path,
            pace=pace,
            parts={"w": self.part},
            optimizer=options.pop("optimizer", None) or adamw({"w": self.part}, {"w": 0.1}),
            compute=descending(lambda now: self.part.weight.sum() * losses[now.step]),
            rate_at=lambda now: 1.0,
            averages={"w": self.average},
            look=lambda now: self.looks.append(now.step),
            **options,
        )


def test_a_checkpoint_of_version_0_1_is_gone_on_from(tmp_path: Path) -> None:
    """Its losses are plain numbers, and it knows neither validation nor dtype."""
    toy = Toy(tmp_path / "toy.pt", [1.0, 1.0])
    toy.loop.run()
    state = torch.load(tmp_path / "toy.pt", weights_only=True)
    del state["dtype"]
    state["progress"] = {"step": 2, "seconds": 3.0, "losses": [(2, 0.05, 0.25)]}
    save(tmp_path / "toy.pt", state)
    later = Toy(tmp_path / "toy.pt", [1.0] * 4)
    progress = later.loop.run()
    assert (progress.step, progress.seconds > 3) == (4, True)
    assert progress.losses[0] == (2, 0.05, {"loss": 0.25})
    assert len(progress.losses) == 2


def test_the_average_is_torchs_with_a_lower_decay_at_first() -> None:
    part = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(part.weight)
    average = averaged(part, 0.3)
    expected, values = 0.0, [1.0, 4.0, -2.0, 3.0]
    for k, value in enumerate(values):
        nn.init.constant_(part.weight, value)
        average.update_parameters(part)
        keep = min(0.3, (k + 1) / (k + 10)) if k else 0.0  # torch's first average is the weights
        expected = keep * expected + (1 - keep) * value
        assert average.module.weight.item() == pytest.approx(expected)
    assert not average.module.weight.requires_grad


def test_a_step_without_a_finite_loss_leaves_the_weights(tmp_path: Path, caplog) -> None:
    toy = Toy(tmp_path / "toy.pt", [1.0, float("nan"), 1.0, float("inf")])
    before: list[Tensor] = []
    for _ in range(4):
        toy.loop.step()
        before.append(toy.part.weight.detach().clone())
    assert not torch.equal(before[0], before[2])
    assert torch.equal(before[0], before[1])
    assert torch.equal(before[2], before[3])
    assert [record.message for record in caplog.records] == [
        f"toy: step {step} has no finite loss or gradient; skipped" for step in (1, 3)
    ]
    assert toy.loop.progress.step == 4
    assert [step for step, *_ in toy.loop.progress.losses] == [2, 4]


def test_it_looks_first_on_the_way_and_at_the_end_but_once_a_step(tmp_path: Path) -> None:
    pace = Pace(steps=5, look=Every(steps=2), look_first=True)
    toy = Toy(tmp_path / "toy.pt", [1.0] * 5, pace=pace)
    toy.loop.run()
    assert toy.looks == [0, 2, 4, 5]
    again = Toy(tmp_path / "toy.pt", [1.0] * 5, pace=pace)
    again.loop.run()
    assert again.looks == []


def test_a_killed_training_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    losses, pace = [1.0, -2.0, 0.5, 3.0, 1.0], Pace(steps=5, save=Every(steps=2))
    whole = Toy(tmp_path / "whole.pt", losses, pace=pace)
    whole.loop.run()
    killed = Toy(tmp_path / "killed.pt", losses, pace=pace)
    compute = killed.loop._compute

    def until_the_fourth(now: Progress):
        if now.step == 3:
            raise KeyboardInterrupt
        return compute(now)

    killed.loop._compute = until_the_fourth
    with pytest.raises(KeyboardInterrupt):
        killed.loop.run()
    resumed = Toy(tmp_path / "killed.pt", losses, pace=pace)
    resumed.loop.run()
    assert torch.equal(resumed.part.weight, whole.part.weight)
    assert torch.equal(resumed.average.module.weight, whole.average.module.weight)


def test_a_damaged_checkpoint_and_one_of_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.pt"
    Toy(path, [1.0], config={"width": 1}).loop.run()
    with pytest.raises(SettingsError, match="toy.pt: another width"):
        Toy(path, [1.0], config={"width": 2}, expects="another width").loop.run()
    Toy(path, [1.0], config={"width": 2}).loop.run()  # where it may differ
    save(path, {"modules": {}})
    with pytest.raises(SettingsError, match="toy.pt: damaged, remove it to begin anew"):
        Toy(path, [1.0]).loop.run()
    path.write_bytes(b"no checkpoint")
    with pytest.raises(SettingsError, match="toy.pt: damaged, remove it to begin anew"):
        Toy(path, [1.0]).loop.run()


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    Toy(tmp_path / "toy.pt", [1.0], main=False).loop.run()
    assert not any(tmp_path.iterdir())


def test_a_gradient_that_is_not_finite_makes_no_step(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy.pt", [1.0], clip=lambda *_: torch.tensor(float("inf")))
    toy.loop.step()
    assert toy.part.weight.item() == 1


def test_groups_may_have_rates_of_their_own(tmp_path: Path) -> None:
    """AdamW's first step is as long as the rate, whatever the gradient."""
    parts = {name: nn.Linear(1, 1, bias=False) for name in ("model", "critic")}
    before = {name: part.weight.item() for name, part in parts.items()}
    loop = Loop(
        "two",
        tmp_path / "two.pt",
        pace=Pace(steps=1),
        parts=parts,
        optimizer=adamw(parts, {"model": 1e-2, "critic": 1e-1}),
        compute=descending(lambda _: {name: part.weight.sum() for name, part in parts.items()}),
        rate_at=lambda _: (1.0, 0.5),
    )
    loop.run()
    moved = {name: before[name] - part.weight.item() for name, part in parts.items()}
    assert moved == pytest.approx({"model": 1e-2, "critic": 5e-2}, rel=0.1)


def test_curves_are_plotted_side_by_side(tmp_path: Path) -> None:
    points = [(1, 0.5), (2, 0.25)]
    panels = [Panel("a", {"": points}), Panel("b", {"x": points, "y": []}, level=("z", 0.4))]
    plot(tmp_path / "two.png", panels)
    plot(tmp_path / "none.png", [])
    assert [path.name for path in tmp_path.iterdir()] == ["two.png"]
