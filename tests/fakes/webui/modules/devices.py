"""Precisions; all of them float32 here."""

from contextlib import nullcontext

import torch

cpu = device = torch.device("cpu")
dtype = dtype_vae = torch.float32
unet_needs_upcast = False


def autocast(disable=False):
    return nullcontext()


without_autocast = autocast


def torch_gc():
    pass
