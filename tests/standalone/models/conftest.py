"""The same tiny weights of every family, loaded without a network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fail the test where anything asks for the network, even if the asker catches the error."""
    asked: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        asked.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert asked == []


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {kind: tiny_models.write_folder(root / kind, kind, p) for kind, p in tiny_models.KINDS}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, LatentModel]:
    return {kind: load_model(folder) for kind, folder in folders.items()}


@pytest.fixture(params=[kind for kind, _ in tiny_models.KINDS])
def model(request: pytest.FixtureRequest, loaded: dict[str, LatentModel]) -> LatentModel:
    return loaded[request.param]
