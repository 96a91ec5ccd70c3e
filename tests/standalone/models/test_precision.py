"""Half precision on a CPU is chosen by what the processor has."""

from __future__ import annotations

import pytest
import torch

from lib_hires.standalone.models import fast_dtype, precision

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Call it with the extensions that the processor shall have."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    return lambda *words: monkeypatch.setattr(precision, "_processor", lambda: frozenset(words))


@pytest.mark.parametrize(
    ("words", "fast"),
    [
        (("avx2",), torch.float32),
        (("avx2", "avx512f", "avx512_vnni"), torch.float32),
        (("avx512_bf16",), BF16),
        (("amx_bf16", "amx_tile"), BF16),
        (("asimd", "bf16"), BF16),
        ((), torch.float32),
    ],
)
def test_bfloat16_only_with_units_for_it(processor, words, fast) -> None:
    processor(*words)
    assert fast_dtype() == fast_dtype("cpu") == fast_dtype(torch.device("cpu")) == fast
    assert precision.is_slow(BF16) == (fast != BF16)
    assert bool(precision.slow_message(BF16)) == (fast != BF16)
    assert not precision.is_slow(torch.float32)


@pytest.mark.parametrize(
    ("limit", "slow"),
    [("AVX2", True), ("avx512_core_vnni", True), ("AVX512_CORE_BF16", False), ("ALL", False)],
)
def test_a_limit_of_onednn_counts(processor, monkeypatch, limit: str, slow: bool) -> None:
    processor("avx512_bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert precision.is_slow(BF16) is slow


def test_float16_is_slow_on_most_cpus_and_never_on_cards(processor) -> None:
    processor("avx2", "avx512_bf16")
    assert precision.slow_message(FP16).startswith("float16 is slow here")
    assert precision.slow_message(FP16, "cuda") == ""
    assert fast_dtype("cuda") == FP16
    processor("avx512_fp16")
    assert not precision.is_slow(FP16)


def test_autocast_only_where_it_is_fast(processor) -> None:
    x = torch.ones(2, 2)
    for words, dtype in ((("avx2",), torch.float32), (("avx512_bf16",), BF16)):
        processor(*words)
        with precision.fast_autocast():
            assert (x @ x).dtype == dtype


def test_this_machine_is_read() -> None:
    assert all(isinstance(word, str) for word in precision._processor())
