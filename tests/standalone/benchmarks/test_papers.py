"""AP-LDM's code beside ours, with a pipeline of our own in the place of the authors'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models

from lib_hires.standalone.benchmarks import papers as benchmark_papers
from lib_hires.standalone.benchmarks.papers import Case, Job, papers
from lib_hires.standalone.cli import main
from lib_hires.standalone.models.latent import ModelError

STAND_IN = Path(__file__).parents[2] / "fakes" / "ap_ldm"


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SDXL folder that is complete also for diffusers' pipelines; native 16x16."""
    folder = tiny_models.write_folder(tmp_path_factory.mktemp("models") / "sdxl", "sdxl", "eps")
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    tokenizer = ["transformers", "CLIPTokenizer"]
    index |= {"tokenizer": tokenizer, "tokenizer_2": tokenizer}
    file.write_text(json.dumps(index | {"scheduler": ["diffusers", "DDIMScheduler"]}))
    return folder


@pytest.mark.slow
def test_two_stages_with_attention_give_equal_images(sdxl: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    job = Job(Case("4x", 4, (0.25, 0.5)), sdxl, steps=4, gamma=0.3, first=16)
    papers(tmp_path, STAND_IN, [job], repeats=1, write=lines.append)
    (row,) = json.loads((tmp_path / "report.json").read_text())
    assert row["worst"] <= 1 and row["mean"] < 0.01
    assert row["evaluations"] == [7, 7]
    assert row["made_with"]["dtype"] == "float32"
    assert min(row["ratio"], row["processor ratio"], *row["seconds"]) > 0
    assert len(lines) == 2 and lines[1].startswith("4x") and lines[1].endswith("7/7")
    ours, theirs = ((tmp_path / f"4x-{side}.png").stat().st_size for side in ("ours", "theirs"))
    assert min(ours, theirs) > 0


def test_another_share_of_attention_gives_another_image(sdxl: Path) -> None:
    job = Job(Case("2x", 2, (0.25,)), sdxl, steps=4, first=16)
    mixed = Job(Case("2x", 2, (0.25,)), sdxl, steps=4, gamma=0.3, first=16)
    generated = [benchmark_papers.generate_ours(each) for each in (job, mixed)]
    row = benchmark_papers._row(job, generated[:1], generated[1:], generated[1])
    assert row["worst"] > 1


def test_what_is_not_as_expected_is_refused(
    sdxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--ap-ldm", str(tmp_path), "--model", str(sdxl), "--out", str(tmp_path / "out")]
    assert main(["benchmark", "papers", *options]) == 2
    assert "has no pipeline_apldm_sdxl.py" in capsys.readouterr().err
    assert main(["benchmark", "papers", *options, "--cases", "3x"]) == 2
    assert "cases: expected some of 2x, 4x, tiles, got '3x'" in capsys.readouterr().err
    with pytest.raises(ModelError, match="begins with 1024x1024"):
        benchmark_papers.generate_ours(Job(benchmark_papers.CASES[0], sdxl))


def test_the_folder_may_be_the_repository(tmp_path: Path) -> None:
    inner = tmp_path / "text_to_image"
    inner.mkdir()
    (inner / "pipeline_apldm_sdxl.py").touch()
    assert benchmark_papers.pipeline_folder(tmp_path) == inner
    assert benchmark_papers.pipeline_folder(inner) == inner
