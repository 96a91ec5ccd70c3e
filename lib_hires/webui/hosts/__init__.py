"""What differs between the WebUIs that run this extension, behind one interface (`Host`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lib_hires.webui.hosts import a1111, forge
from lib_hires.webui.hosts.protocol import GuidedPass, Host
from lib_hires.webui.patching import replaced

HOSTS: tuple[Host, ...] = (forge, a1111)
"""The first one that knows a model is its host; the last one takes what no other knows."""


def host_of(sd_model: Any) -> Host:
    """The adapter of the WebUI that has loaded the model."""
    return next(host for host in HOSTS if host.is_host_of(sd_model))


@contextmanager
def guiding(denoiser: Any, guided: GuidedPass) -> Iterator[None]:
    """Put Upsample Guidance around the evaluations of a sampler's CFG denoiser inside the block.

    It is placed anew where the refiner takes another model in the middle.
    """
    host = host_of(denoiser.inner_model.inner_model)
    with ExitStack() as placed:

        def update_inner_model() -> None:
            update()
            placed.close()
            placed.enter_context(host.guiding_model(denoiser, guided))

        update = denoiser.update_inner_model
        placed.enter_context(host.guiding_model(denoiser, guided))
        with replaced(denoiser, "update_inner_model", update_inner_model):
            yield
