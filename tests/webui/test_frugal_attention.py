"""The attention of the VAE on a large latent, where the host may leave it the plain form."""

from __future__ import annotations

import torch
from torch import nn


def test_the_plain_form_is_replaced_inside_the_block(host):
    from modules import sd_hijack_optimizations as optimizations
    from modules.toy_model import ToyModel

    from lib_hires.webui.hosts import a1111

    class Optimized(optimizations.AttnBlock):
        def forward(self, x):
            return x + 2

    model, x = ToyModel(), torch.zeros(1)
    kinds = optimizations.AttnBlock, optimizations.SgmAttnBlock, Optimized
    parts = model.first_stage_model.attention = nn.ModuleList(kind() for kind in kinds)
    with a1111.frugal_attention(model):
        assert [float(part(x)) for part in parts] == [1, 1, 2]
    assert [float(part(x)) for part in parts] == [0, 0, 2]
    assert not any("forward" in vars(part) for part in parts)
