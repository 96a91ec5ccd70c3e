"""Property tests have no deadline: the machine may be busy with something else."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("engine", deadline=None)
settings.load_profile("engine")
