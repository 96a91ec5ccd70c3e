"""The drawing's numbers: what the engine does, and what the page's script computes by itself.

`python tests/engine/run/test_drawing.py` writes tests/engine/run/drawing_tables.json anew.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_hires.run.drawing import element, facts, tables
from lib_hires.run.schedules import SCHEDULES, Model, Sampler, Sampling, schedule_times, sigmas_of
from lib_hires.settings import Settings, SettingsError, declarations

ROOT = Path(__file__).parents[3]
TABLES = Path(__file__).with_name("drawing_tables.json")

SAMPLERS = {
    "Euler": Sampler(),
    "DPM++ 2M": Sampler(schedule="Karras"),
    "Heun": Sampler(evaluations=2),
    "DPM2 a": Sampler(evaluations=2, schedule="Karras", drops_penultimate=True),
    "DDIM": Sampler(timesteps=True),
    "UniPC": Sampler(timesteps=True, ends_at_zero=True),
    "PLMS": Sampler(opening=1, timesteps=True),
}

TWICE = {"first": (1024, 1024), "steps": 10, "sampler": "DPM++ 2M"}
NATIVE = TWICE | {"first": (512, 512)}
UG = {"ug": True}
REFINE = {"refine": True}

RUNS: list[tuple[dict[str, Any], dict[str, object]]] = [
    (TWICE, {}),
    (TWICE, UG),
    (TWICE, UG | {"ug_eta": 0.6}),
    (TWICE, UG | {"ug_eta": 0.6, "ug_edge": 0, "ug_theta": 0.8}),
    (TWICE, UG | {"ug_eta": 0.7, "ug_cadence": 3, "ug_shifted_start": False}),
    (TWICE, UG | {"ug_passes": "Hires. fix"}),
    (TWICE, UG | {"ug_scale": 1.5}),
    *((TWICE, UG | {"ug_scale": scale}) for scale in (0.25, 0.75)),  # below the least: automatic
    (TWICE | {"first": (768, 1152), "steps": 1}, UG),
    (TWICE, UG | {"ug_windows": "Hann"}),
    (TWICE | {"first": (768, 1152)}, UG | {"ug_windows": "average", "ug_overlap": 0.75}),
    (TWICE, {"ug_windows": "Hann"}),
    (NATIVE, UG | REFINE | {"ug_windows": "Hann", "ug_overlap": 0, "refine_factor": 2.5}),
    (TWICE | {"sampler": "Heun"}, UG),
    (TWICE | {"sampler": "Heun"}, UG | {"ug_cadence": 2}),
    (TWICE | {"sampler": "DPM2 a"}, UG),
    (TWICE | {"sampler": "DDIM", "steps": 7}, UG | {"ug_eta": 0.5}),
    (TWICE | {"sampler": "UniPC"}, UG | {"ug_eta": 0.5, "pfsa": True}),
    (TWICE | {"sampler": "PLMS"}, UG | REFINE),
    (TWICE | {"strength": 0.6}, UG | {"pfsa": True}),
    (TWICE | {"strength": 0.6, "sampler": "DDIM"}, UG | {"pfsa": True}),
    (TWICE | {"strength": 0.3, "fixed_steps": True}, UG | {"ug_eta": 0.9, "pfsa": True}),
    (TWICE | {"strength": 0.0}, UG | {"ug_passes": "img2img", "pfsa": True, "pfsa_passes": "both"}),
    (NATIVE, UG),
    (NATIVE, {"pfsa": True}),
    (NATIVE, {"pfsa": True, "pfsa_gamma": 0.1, "pfsa_beta": 1.5, "pfsa_eta1": 0.25}),
    (NATIVE, REFINE),
    (NATIVE, REFINE | UG | {"refine_factor": 4, "refine_eta2": "0.25, 0.45"}),
    (NATIVE, REFINE | UG | {"refine_guided": False, "refine_width": 1000, "refine_height": 1000}),
    (NATIVE, REFINE | UG | {"refine_method": "Pivot", "refine_factor": 4, "refine_pivot": 650}),
    (NATIVE | {"sampler": "DDIM"}, REFINE | {"refine_method": "Pivot", "refine_factor": 2.5}),
    (NATIVE | {"first": (640, 448)}, REFINE | {"refine_eta2": "0.3;0.3", "refine_factor": 3}),
    (NATIVE, REFINE | {"refine_eta2": "0.1, x"}),
    (NATIVE, REFINE | {"refine_width": 1024}),
    (NATIVE, REFINE | {"refine_width": 8, "refine_height": 56}),
    (NATIVE, REFINE | {"refine_width": 448, "refine_height": 448}),
    (NATIVE, REFINE | {"refine_width": 2048, "refine_height": 1024}),
    *((NATIVE | {"schedule": name, "steps": 6}, REFINE | UG) for name in SCHEDULES),
    (NATIVE | {"schedule": "Beta", "steps": 6}, {}),
]


def made() -> dict[str, Any]:
    """What the file holds: the facts of a page, runs, and their tables or the error's sentence."""
    abar = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2).cumprod(0)
    model = Model(sigmas_of(abar), (512, 512))
    handed_over = facts(model, SAMPLERS, element_id=str, host={}, first_multiple=64)
    runs = []
    for run, changes in RUNS:
        values = Settings().values() | changes  # unchecked, as a page's inputs are
        run = {"schedule": "Automatic", "strength": None} | run
        sampling = Sampling(**run | {"sampler": SAMPLERS[run["sampler"]]})
        try:
            result = {"tables": tables(Settings.from_values(_meant(values)), sampling, model)}
        except SettingsError as error:
            result = {"error": str(error)}
        runs.append({"run": run | {"values": values}} | result)
    return {"facts": handed_over, "runs": runs}


def _meant(values: dict[str, Any]) -> dict[str, object]:
    return {row.name: row.control.meant(values[row.name]) for row in declarations()}


def test_the_file_of_tables_is_what_the_functions_give() -> None:
    _agree(json.loads(TABLES.read_text()), json.loads(json.dumps(made())), "")


def _agree(kept: Any, now: Any, where: str) -> None:
    """The same to rounding, at any depth."""
    if isinstance(now, dict):
        assert kept.keys() == now.keys(), where
        for key in now:
            _agree(kept[key], now[key], f"{where}.{key}")
    elif isinstance(now, list):
        assert len(kept) == len(now), where
        for index, pair in enumerate(zip(kept, now, strict=True)):
            _agree(*pair, f"{where}[{index}]")
    elif isinstance(now, float):
        assert kept == pytest.approx(now, rel=1e-5, abs=1e-12), where
    else:
        assert kept == now, where


def test_the_page_s_script_computes_the_same_tables() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    runner = ROOT / "tests" / "javascript" / "tables.test.js"
    done = subprocess.run(
        [node, "--test", str(runner)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 20, 150])
def test_schedules_fall_from_the_largest_sigma_to_their_end(name: str, steps: int) -> None:
    model = Model(tuple(made()["facts"]["model"]["sigmas"]), (512, 512))
    times = schedule_times(Sampling((512, 512), steps, schedule=name), model)
    if name != "DDIM":  # which counts from below
        assert times[0] == pytest.approx(model.sigmas[-1])
    assert all(later < earlier for earlier, later in zip(times, times[1:], strict=False))
    assert times[-1] == (pytest.approx(model.sigmas[0]) if name == "KL Optimal" else 0)


def test_the_element_carries_its_facts_whatever_is_in_them() -> None:
    import html
    import re

    model = Model((0.1, 1.0), (512, 512))
    given = facts(model, {'"><script>': Sampler()}, element_id=str, host={"width": "w's"})
    text = element(given)
    assert "<script" not in text
    data = re.search(r'data-facts="([^"]*)"', text)
    assert data is not None
    assert json.loads(html.unescape(data[1])) == json.loads(json.dumps(given))


if __name__ == "__main__":
    TABLES.write_text(json.dumps(made(), separators=(",", ":")) + "\n")
