"""The one place that imports k-diffusion, which takes seconds and is not quiet about it."""

import warnings
from typing import Any


def import_k_diffusion() -> Any:
    """The package, with `sampling` and `external`; its dependencies' own warnings are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import k_diffusion
    return k_diffusion
