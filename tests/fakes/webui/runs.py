"""What the tests of whole runs share: how images compare, and evaluations that fail."""

from __future__ import annotations

import torch


def same(one, other) -> bool:
    return len(one.images) == len(other.images) and all(
        a.shape == b.shape and torch.equal(a, b)
        for a, b in zip(one.images, other.images, strict=True)
    )


def sizes(result) -> set[tuple[int, int]]:
    return {tuple(image.shape[-2:]) for image in result.images}


def leftovers() -> int:
    """What hangs on the model, which outlives every run."""
    from modules import shared

    parts = list(shared.loaded.sd_model.modules())
    own = sum("forward" in vars(part) or "apply_model" in vars(part) for part in parts)
    return own + sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in parts)


class Failure(RuntimeError):
    pass


def fail_at(host, call, what):
    """Make the model's `call`-th evaluation go wrong; returns what puts it right again."""
    from modules import shared

    model = shared.loaded.sd_model
    plain, count = model.apply_model, [0]

    def apply_model(*args, **kwargs):
        count[0] += 1
        if count[0] == call:
            what()
        return plain(*args, **kwargs)

    model.apply_model = apply_model
    return lambda: vars(model).pop("apply_model")


def raise_failure():
    raise Failure("as asked")
