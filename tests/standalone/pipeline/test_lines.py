"""Files of prompts as spreadsheets, A1111's users and other programs write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.pipeline.lines import Line, read_lines
from lib_hires.standalone.pipeline.request import Request


@pytest.fixture
def read(tmp_path: Path):
    """The lines of a file with that content, and the warnings."""

    def lines(content: str | bytes, name: str = "p.csv") -> tuple[list[Line], list[str]]:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        warnings: list[str] = []
        found, bad = read_lines(file, Request(), Settings(), warnings.append)
        assert bad == len(warnings)
        return found, warnings

    return lines


def values(lines: list[Line]) -> list[tuple[str, int]]:
    return [(line.request.prompt, line.request.seed) for line in lines]


@pytest.mark.parametrize(
    "table",
    [
        "prompt,seed\na house,5\n",
        "prompt,seed,\r\na house,5,\r\n",
        "prompt,seed,,,\na house,5,,,\n",
        "prompt,seed\na house,5,,\n",
        'seed, prompt\n5, "a house"\n',
        "\ufeffprompt;seed\na house;5\n",
        "seed;prompt;\n5; a house;\n",
        "sep=;\nprompt;seed\na house;5\n",
        "sep=,\nprompt,seed\na house,5\n",
        "Prompt , SEED\n\na house , 5 \n,,\n",
    ],
)
def test_tables_are_read_as_they_are_meant(table: str, read) -> None:
    lines, warnings = read(table)
    assert (values(lines), warnings) == ([("a house", 5)], [])


def test_commas_inside_quotes_and_other_tables_cells(read) -> None:
    lines, _ = read('prompt, seed\n"a house, red", 1\n"say ""hi""", 2\n')
    assert values(lines) == [("a house, red", 1), ('say "hi"', 2)]
    lines, _ = read('prompt;refine;refine_eta2\na, b;on;"0.5, 0.5"\n')
    assert lines[0].request.prompt == "a, b" and lines[0].settings.refine.eta2 == (0.5, 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,seed\n", "p.csv has no prompt, only a header"),
        ("prompt\n\n,\n", "p.csv has no prompt, only a header"),
        (
            "prompt\tseed\na\t1\n",
            "separated by tabs; expected commas or semicolons",
        ),
        ("prompt|seed\na|1\n", "the columns are separated by bars"),
        ("prompt,cfg_scale\na,7\n", "got 'cfg_scale'; did you mean cfg?"),
        ("prompt,negative_prompt\na,b\n", "did you mean negative?"),
        ("prompt,sampler_name\na,b\n", "did you mean sampler?"),
        ("prompt,ug_thera\na,1\n", "did you mean ug_theta?"),
        ("prompt,höhe\na,1\n".encode("cp1252"), "is not UTF-8 text (byte 9); save it as UTF-8"),
    ],
)
def test_other_tables_are_refused_by_what_is_wrong(content, message: str, read) -> None:
    with pytest.raises(SettingsError) as caught:
        read(content)
    assert message in str(caught.value) and str(caught.value).startswith("--prompts: ")


def test_a1111s_lines_of_options(read) -> None:
    text = (
        '--prompt "a red house" --seed 3\n'
        "a plain -- line\n"
        '  --negative_prompt "blur" --cfg_scale 7.5 --sampler_name "Euler a" --prompt a blue fish\n'
        '--prompt "it\'s \\"big\\"" --steps 5 --batch_size 2 --ug --ug-theta 0.5 --no-refine\n'
        '--prompt x --sampler_name "DPM++ 2M SDE Karras" --seed -1\n'
    )
    lines, warnings = read(text, "p.txt")
    assert warnings == []
    requests = [line.request for line in lines]
    assert requests[0] == Request(prompt="a red house", seed=3)
    assert requests[1] == Request(prompt="a plain -- line")
    assert requests[2] == Request("a blue fish", "blur", cfg=7.5, sampler="Euler a")
    assert requests[3] == Request(prompt='it\'s "big"', steps=5, batch=2)
    assert lines[3].settings == Settings.from_values({"ug": True, "ug_theta": 0.5})
    assert requests[4] == Request(prompt="x", sampler="DPM++ 2M SDE", schedule="Karras", seed=-1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--seed 3", "prompt: expected one"),
        ('--prompt "a house', "a quote is not closed"),
        ("--prompt a --n_iter 2", "n_iter: there is no such setting"),
        ("--prompt a --seed x", "seed: expected a whole number"),
        ("--prompt a --seed 1 --seed 2", "--seed: expected once"),
    ],
)
def test_lines_of_options_without_sense_are_warned_of(line: str, message: str, read) -> None:
    lines, warnings = read(f"{line}\nx\n", "p.txt")
    assert values(lines) == [("x", 0)]
    assert warnings[0].startswith(f"p.txt, line 1: {message}")


def test_a_table_counts_lines_as_an_editor_does(read) -> None:
    _, warnings = read('sep=;\nprompt;seed\n"a\nb";1\nx;y\n')
    assert warnings[0].startswith("p.csv, line 5: seed: expected")
