"""A run that sd-webui-animatediff makes a clip of comes out as it would without us, and says so."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from runs import leftovers, same

from lib_hires.webui import animatediff

EVERYTHING = {"ug": True, "pfsa": True, "pfsa_gamma": 0.1, "refine": True, "refine_eta2": "0.4"}


@pytest.fixture
def extension(monkeypatch):
    """The state that the extension keeps; its parameters are set before each run."""
    module = ModuleType(animatediff.EXTENSION)
    module.mm_animatediff = SimpleNamespace(ad_params=None)
    monkeypatch.setitem(sys.modules, animatediff.EXTENSION, module)
    return module.mm_animatediff


@pytest.mark.parametrize("settings", [EVERYTHING, {"ug": True}, {"refine": True}])
def test_a_clip_is_the_plain_one_with_a_message(host, extension, settings):
    plain = host.generate()
    extension.ad_params = SimpleNamespace(enable=True)
    made = host.generate(settings)
    assert same(plain, made) and leftovers() == 0
    (message,) = made.messages
    assert "AnimateDiff's clips are not guided or refined" in message
    assert "hires generate --motion" in message


def test_nothing_is_said_where_nothing_of_ours_is_on(host, extension):
    extension.ad_params = SimpleNamespace(enable=True)
    assert not host.generate().messages


@pytest.mark.parametrize("params", [None, SimpleNamespace(enable=False), SimpleNamespace()])
def test_an_extension_that_is_off_changes_nothing(host, extension, params):
    guided = host.generate({"ug": True})
    extension.ad_params = params
    again = host.generate({"ug": True})
    assert same(guided, again) and not again.messages
