"""Files of prompts as spreadsheets, A1111's users and other programs write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.pipeline.lines import Line, read_lines
from lib_hires.standalone.pipeline.request import Request, warn_of_syntax


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
        "\n , \nprompt,seed\na house,5\n",
        "prompt\tseed\na house\t5\n",
        "sep=\t\nprompt\tseed\na house\t5\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])  # spreadsheets' "Unicode text"
def test_tables_are_read_as_they_are_meant(table: str, encoding: str, read) -> None:
    lines, warnings = read(table.encode(encoding))
    assert (values(lines), warnings) == ([("a house", 5)], [])


def test_columns_may_have_the_webuis_names(read) -> None:
    table = "Prompt,Negative prompt,CFG Scale,sampler_name,Batch size\na,b,7,DPM++ 2M Karras,2\n"
    lines, warnings = read(table)
    expected = Request("a", "b", cfg=7, sampler="DPM++ 2M", schedule="Karras", batch=2)
    assert ([line.request for line in lines], warnings) == ([expected], [])


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
        ("prompt|seed\na|1\n", "separated by bars; expected commas, semicolons or tabs"),
        ("prompt,cfg,cfg_scale\na,7,7\n", "named as the options are, each once, got 'cfg'"),
        ("prompt,styles\na,b\n", "got 'styles'; the WebUI has it, and hires does not"),
        ("a red house,3\n", "got 'a red house'"),
        (",,\n\n", "there is no column prompt"),
        ("prompt\na\n".encode("utf-16-le"), "p.csv is not text (it has zeros)"),
        (b"PK\3\4" + bytes(9), "p.csv is not text (it has zeros)"),
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
        '--Prompt="a = b" --Seed=7\n'
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
    assert requests[5] == Request(prompt="a = b", seed=7)


def test_options_behind_a_prompt_stay_there_with_a_warning(read, caplog) -> None:
    lines, _ = read("a house --seed 3\na house --ar 16:9\na -- house\n", "p.txt")
    assert values(lines)[0] == ("a house --seed 3", 0) and len(lines) == 3
    (shown,) = caplog.messages
    assert shown.startswith("line 1: --seed stays in the prompt; a line of options begins with")


def test_other_formats_are_refused_by_name(read) -> None:
    for name in ("p.json", "p.jsonl", "p.yaml"):
        with pytest.raises(SettingsError, match=f"expected a text or a .csv table, got {name}"):
            read('{"prompt": "a"}', name)


def test_the_webuis_syntax_is_warned_of_once(caplog) -> None:
    for prompt in ("a (red:1.2) house 1", "a BREAK b 1", "x <lora:y:0.8> 1"):
        warn_of_syntax(prompt)
        warn_of_syntax(prompt)
    for prompt in ("a (red) house: 1", "BREAKING news", "a [red] house, 1 < 2"):
        warn_of_syntax(prompt)
    assert [message.partition(" is read")[0] for message in caplog.messages] == [
        "(red:1.2)",
        "BREAK",
        "<lora:y:0.8>",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--seed 3", "prompt: expected one"),
        ('--prompt "a house', "a quote is not closed"),
        ("--prompt a --n_iter 2", "n_iter: there is no such setting"),
        ("--prompt a --lora b.pt", "lora: give --lora to the command"),
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
