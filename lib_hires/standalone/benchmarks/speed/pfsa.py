"""`hires benchmark pfsa`: Attentive Guidance beside the N x N form that it replaces."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import torch
from torch import Tensor


def pfsa_cost(side: int = 128) -> str:
    """Time and peak extra memory of PFSA and of the explicit N x N form, side by side.

    Each is run in a process of its own on a side x side x 4 latent.
    """
    figures = {}
    for form in ("ours", "explicit"):
        command = [
            sys.executable,
            "-c",
            f"from {__name__} import measure; measure({form!r}, {side})",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures[form] = json.loads(done.stdout.splitlines()[-1])
    lines = [f"PFSA of a {side}x{side}x4 latent, {torch.get_num_threads()} threads"]
    lines += [
        f"{form:9} {figure['seconds']:7.3f} s  {figure['mebibytes']:8.1f} MiB extra at the peak"
        for form, figure in figures.items()
    ]
    ratios = [figures["ours"][key] / figures["explicit"][key] for key in ("seconds", "mebibytes")]
    lines.append(f"ratio     {ratios[0]:7.3f}    {ratios[1]:8.4f}")
    return "\n".join(lines)


def measure(form: str, side: int) -> None:
    """Print one form's median seconds and peak extra memory as JSON; for a process of its own."""
    import resource

    from lib_hires.attentive_guidance import pfsa

    def explicit(z: Tensor) -> Tensor:
        flat = z.flatten(2).transpose(1, 2)  # (b, h·w, c)
        weights = (flat @ flat.transpose(1, 2) / math.sqrt(z.shape[1])).softmax(-1)
        return (weights @ flat).transpose(1, 2).reshape(z.shape)

    function = {"ours": pfsa, "explicit": explicit}[form]
    z = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    function(z[..., :8, :8])  # start threads and kernels before measuring
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(5):
        started = time.perf_counter()
        function(z)
        times.append(time.perf_counter() - started)
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB on Linux
    figures = {"seconds": sorted(times)[2], "mebibytes": extra / 1024}
    sys.stdout.write(json.dumps(figures) + "\n")
