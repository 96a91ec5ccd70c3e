"""ComfyUI's entry: the nodes, where it loads this folder from custom_nodes; nothing anywhere else.

Nothing is installed: the engine is imported from this folder.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if "comfy.samplers" in sys.modules:
    if "lib_hires" not in sys.modules:
        _spec = spec_from_file_location(
            "lib_hires", Path(__file__).parent / "lib_hires" / "__init__.py"
        )
        assert _spec is not None and _spec.loader is not None
        sys.modules["lib_hires"] = module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules["lib_hires"])

    from lib_hires.comfy.register import registration

    globals().update(registration())
