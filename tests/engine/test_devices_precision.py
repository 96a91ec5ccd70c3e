"""Products of float32 under a host's autocast, with torch as it is and as it was."""

from __future__ import annotations

import pytest
import torch

from lib_hires.devices import full_precision

x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["torch as it is", "before 2.4"])
def torch_of_then(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "before 2.4":
        now = torch.is_autocast_enabled
        monkeypatch.delattr(torch.amp, "is_autocast_available", raising=False)
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cuda": now(kind))
        monkeypatch.setattr(torch, "is_autocast_cpu_enabled", lambda: now("cpu"))


@pytest.mark.usefixtures("torch_of_then")
def test_nothing_is_rounded_inside() -> None:
    cpu = torch.device("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision(cpu):
            exact = x @ x
        assert (x @ x).dtype == torch.bfloat16  # and after it all is as before
    assert torch.equal(exact, x @ x)


@pytest.mark.usefixtures("torch_of_then")
@pytest.mark.parametrize("kind", ["mps", "meta", "cuda", "privateuseone"])
def test_a_device_without_autocast_gets_none(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.1, which the WebUI pins, refuses an autocast of Apple's devices even to end one."""

    def refused(kind: str, **_: object) -> None:
        raise RuntimeError(f"User specified an unsupported autocast device_type '{kind}'")

    monkeypatch.setattr(torch, "autocast", refused)
    with full_precision(torch.device(kind)):
        pass
