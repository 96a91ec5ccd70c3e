"""What is put on an object comes off again, whatever was there and whatever happens."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from lib_hires.webui.patching import Once, replaced


class Owner:
    def method(self, x):
        return x


@pytest.mark.parametrize("had", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_replaced_puts_back_what_the_object_itself_had(had, fails):
    owner = Owner()
    if had:
        owner.method = str
    before = dict(vars(owner))
    try:
        with replaced(owner, "method", len):
            assert owner.method("abc") == 3
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert vars(owner) == before
    assert "method" in vars(Owner)


@pytest.mark.parametrize("had", [False, True])
def test_once_acts_once_and_does_not_stack(had):
    owner, scopes = Owner(), []

    def scope_called(name):
        @contextmanager
        def scope(x):
            scopes.append((name, x))
            yield

        return scope

    if had:
        owner.method = lambda x: -x
    before = dict(vars(owner))
    Once(owner, "method", scope_called("first"))
    Once(owner, "method", scope_called("second"))
    assert owner.method(3) == owner.method(3)
    assert scopes == [("second", 3)]
    assert vars(owner) == before


def test_once_is_gone_even_when_the_call_fails():
    owner = Owner()

    @contextmanager
    def scope(x):
        yield

    Once(owner, "method", scope)
    with pytest.raises(TypeError):
        owner.method()
    assert vars(owner) == {}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("Euler", {}, [0, 1, 2, 3, 4]),
        ("Heun", {"second_order": True}, [0, None, 1, None, 2]),
        ("PLMS", {}, [None, None, 1, 2, 3]),
        ("UniPC", {}, [None] * 5),
    ],
)
def test_where_steps_begin(name, options, expected):
    from lib_hires.webui.sampling.attentive import steps_done

    config = SimpleNamespace(name=name, options=options)
    assert [steps_done(config, evaluations) for evaluations in range(5)] == expected
