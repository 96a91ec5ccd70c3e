"""The host's forms of the VAE's attention."""

from torch import nn


class AttnBlock(nn.Module):
    def forward(self, x):
        return x


class SgmAttnBlock(nn.Module):
    def forward(self, x):
        return x


diffusionmodules_model_AttnBlock_forward = AttnBlock.forward
sgm_diffusionmodules_model_AttnBlock_forward = SgmAttnBlock.forward


def sub_quad_attnblock_forward(self, x):
    return x + 1
