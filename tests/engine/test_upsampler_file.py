"""The file of a feature upsampler: what comes back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy_upsamplers import info, trained

from lib_hires.feature_upsampler import UpsamplerError
from lib_hires.upsampler_file import files_in, read_upsampler, write_upsampler


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.safetensors"
    write_upsampler(path, trained(), info(steps=7, version="1.2"))
    return path


def test_a_file_comes_back_as_it_was(file: Path) -> None:
    upsampler, short_hash = read_upsampler(file)
    assert upsampler.info == info(steps=7, version="1.2")
    for name, value in trained().state_dict().items():
        assert torch.equal(upsampler.state_dict()[name], value)
    assert len(short_hash) == 10
    assert file.stat().st_size < 16_000
    write_upsampler(file, upsampler, info(steps=8))
    assert read_upsampler(file)[1] != short_hash


def test_the_same_weights_make_the_same_file(file: Path, tmp_path: Path) -> None:
    """An image's text keeps the file's hash."""
    again = tmp_path / "again.safetensors"
    write_upsampler(again, read_upsampler(file)[0], info(steps=7, version="1.2"))
    assert again.read_bytes() == file.read_bytes()


def test_the_file_is_safetensors_both_ways(file: Path, tmp_path: Path) -> None:
    """Against the format's own library."""
    tensors = load_file(file)
    for name, value in trained().state_dict().items():
        assert torch.equal(tensors[name], value)
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["scale"] == "2.0"
    theirs = tmp_path / "theirs.safetensors"
    save_file(tensors, theirs, metadata)
    assert read_upsampler(theirs)[0].info == info(steps=7, version="1.2")


def rewritten(file: Path, **changes: object) -> None:
    """The file with other metadata, or with weights changed: a tensor, or None to leave it out."""
    tensors = load_file(file)
    metadata = info().metadata()
    for name, value in changes.items():
        of_weights = name in tensors or isinstance(value, Tensor)
        (tensors if of_weights else metadata)[name] = value
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, file, {name: text for name, text in metadata.items() if text is not None})


def damaged(file: Path, header: object) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def with_header(file: Path, shape: str) -> None:
    """A file whose one tensor has a shape that JSON can hold and no tensor can have."""
    metadata = json.dumps(info().metadata())
    tensor = f'{{"dtype": "F32", "shape": [{shape}], "data_offsets": [0, 4]}}'
    text = f'{{"__metadata__": {metadata}, "a": {tensor}}}'.encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))


def test_what_cannot_be_one_is_not_offered(tmp_path: Path) -> None:
    write_upsampler(tmp_path / "mine.safetensors", trained(), info())
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "large.safetensors").write_bytes(bytes(2 << 20))
    assert files_in(tmp_path) == {"mine": tmp_path / "mine.safetensors"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.unlink(), "could not be read (No such file"),
        (lambda f: f.write_bytes(b""), "is not a safetensors file"),
        (lambda f: f.write_bytes(b"PK\x03\x04" * 100), "is not a safetensors file"),
        (lambda f: f.write_bytes(f.read_bytes()[:-4]), "is damaged"),
        (lambda f: f.write_bytes(f.read_bytes() + b"more"), "is damaged"),
        (lambda f: f.write_bytes(bytes(1 << 21)), "is too large"),
        (lambda f: damaged(f, {"a": ENTRY}), "is damaged"),
        (lambda f: damaged(f, {"a": ENTRY | {"shape": [-1, -2]}}), "is damaged"),
        (lambda f: damaged(f, {"a": ENTRY | {"data_offsets": "x"}}), "is damaged"),
        (lambda f: damaged(f, {"__metadata__": [1]}), "is damaged"),
        (lambda f: damaged(f, {"a": 1}), "is damaged"),
        (lambda f: rewritten(f, kind="a LoRA"), "is not a feature upsampler"),
        (lambda f: rewritten(f, scale=None), "has damaged metadata ('scale')"),
        (lambda f: rewritten(f, pivot="many"), "has damaged metadata"),
        (lambda f: rewritten(f, pivot="0"), "expected K from 1 to 999"),
        (lambda f: rewritten(f, scale="nan"), "expected K from 1 to 999"),
        (lambda f: rewritten(f, width="100000000"), "expected K from 1 to 999"),
        (lambda f: rewritten(f, layers="3,2,1,0"), "layers: expected rising whole numbers"),
        (lambda f: rewritten(f, channels="1,2"), "channels: expected 4"),
        (
            lambda f: rewritten(f, extra=torch.zeros(1)),
            "has a weight too many, extra; train it again",
        ),
        (
            lambda f: save_file({"a": torch.zeros(1)}, f, info().metadata()),
            "has a weight too many, a;",
        ),
        (lambda f: rewritten(f, **{"phi.0.into.bias": None}), "lacks the weight phi.0.into.bias"),
        (lambda f: with_header(f, shape="Infinity"), "is damaged"),
        (lambda f: rewritten(f, layers="0,1,2,999"), "layers: expected rising whole numbers"),
        (
            lambda f: rewritten(f, **{"phi.0.into.bias": torch.zeros(9)}),
            "has a damaged weight phi.0.into.bias",
        ),
        (
            lambda f: rewritten(f, **{"phi.0.into.bias": torch.full((8,), torch.nan)}),
            "has a damaged weight phi.0.into.bias",
        ),
        (lambda f: rewritten(f, **{"phi.0.into.bias": torch.zeros(8).half()}), "is damaged"),
    ],
)
def test_other_files_are_refused_with_a_message(file: Path, spoil, message: str) -> None:
    spoil(file)
    with pytest.raises(UpsamplerError) as refused:
        read_upsampler(file)
    assert str(refused.value).startswith(f"{file.name}: {message}")
    assert "\n" not in str(refused.value)
