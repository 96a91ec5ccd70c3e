"""How the benchmarks measure memory."""

from __future__ import annotations

from mmap import PAGESIZE, mmap

import pytest
import torch

from lib_hires.standalone.benchmarks.memory import peak_memory


def take_new_pages() -> None:
    """64 MiB straight from the system: in the heap earlier tests may have left as much."""
    with mmap(-1, 2**26) as pages:
        pages[::PAGESIZE] = bytes(2**26 // PAGESIZE)


def test_the_peak_is_of_the_work_alone() -> None:
    freed = bytearray(2**28)
    del freed
    # A system that is short of memory may take other pages of this process away meanwhile.
    peaks = [peak_memory(torch.device("cpu"), take_new_pages) for _ in range(3)]
    if None in peaks:
        pytest.skip("this system reports no peak of memory")
    assert 0.9 < max(peaks) / 2**26 < 2
