"""The one place that imports k-diffusion, and of it only the samplers and the denoisers."""

import sys
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from typing import Any

PACKAGE = "k_diffusion"


@cache
def import_k_diffusion() -> Any:
    """The package with its modules `sampling` and `external` only.

    Its `__init__` also imports its trainings, and with them CLIP, kornia and wandb: seconds, and a
    setuptools that still has pkg_resources. So the package is made here without running that file;
    one that is imported already is taken as it is.
    """
    if PACKAGE not in sys.modules:
        found = find_spec(PACKAGE)
        if found is None or found.submodule_search_locations is None:
            raise ModuleNotFoundError(f"No module named {PACKAGE!r}", name=PACKAGE)
        bare = ModuleSpec(PACKAGE, None, is_package=True)
        bare.submodule_search_locations = found.submodule_search_locations
        sys.modules[PACKAGE] = module_from_spec(bare)
    for name in ("external", "sampling"):
        import_module(f"{PACKAGE}.{name}")
    return sys.modules[PACKAGE]
