"""Wrappers in a model's options, by kind and key."""

from functools import partial


class WrappersMP:
    SAMPLER_SAMPLE = "sampler_sample"
    PREDICT_NOISE = "predict_noise"
    CALC_COND_BATCH = "calc_cond_batch"


def add_wrapper_with_key(kind, key, wrapper, options, is_model_options=False):
    assert is_model_options
    wrappers = options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)


def wrapped(kind, function, options):
    """`function` inside all wrappers of a kind, the first one outermost."""
    by_key = options.get("transformer_options", {}).get("wrappers", {}).get(kind, {})
    for wrapper in reversed([w for wrappers in by_key.values() for w in wrappers]):
        function = partial(wrapper, function)
    return function
