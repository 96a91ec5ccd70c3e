"""Crops on disk: what is stored, and what is taken of it."""

import numpy as np
import pytest

from lib_hires.standalone.training import crops as module
from lib_hires.standalone.training.crops import SIDE, Crops, draw_shard


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(module, "SHARD", 6)


@pytest.mark.slow
def test_a_shard_holds_crops_of_each_scale_and_is_drawn_once(tmp_path, few):
    draw_shard(tmp_path, seed=1, number=3)
    path = tmp_path / "0003.npy"
    stored = np.load(path)
    assert stored.shape == (6, SIDE, SIDE, 3) and stored.dtype == np.uint8
    written = path.stat().st_mtime_ns
    draw_shard(tmp_path, seed=1, number=3)
    assert path.stat().st_mtime_ns == written
    draw_shard(tmp_path / "again", seed=1, number=3)
    np.testing.assert_array_equal(np.load(tmp_path / "again" / "0003.npy"), stored)


def test_windows_are_pieces_of_the_crops_mirrored_or_not(tmp_path):
    rows, columns = np.mgrid[:SIDE, :SIDE]
    crop = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    np.save(tmp_path / "0000.npy", crop[None])
    windows = Crops(tmp_path).windows(np.random.default_rng(0), 20, 32)
    steps = set()
    for window in windows:
        across = np.diff(window[:, :, 1].astype(int), axis=1)
        assert np.all(np.diff(window[:, :, 0].astype(int), axis=0) == 1)
        assert np.all(across == across[0, 0])
        steps.add(int(across[0, 0]))
    assert steps == {-1, 1}


def test_new_shards_join(tmp_path):
    shard = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    np.save(tmp_path / "0000.npy", shard)
    crops = Crops(tmp_path)
    np.save(tmp_path / "0001.npy", shard)
    assert len(crops) == 2
    crops.refresh()
    assert len(crops) == 4


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no crops"):
        Crops(tmp_path)
