"""Imports all that generation needs: for the process from which those that generate are forked."""

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # noqa: F401
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer  # noqa: F401

from lib_hires.standalone.benchmarks.quality import generation  # noqa: F401
from lib_hires.standalone.models.k_diffusion import import_k_diffusion

import_k_diffusion()
