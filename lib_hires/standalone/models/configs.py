"""diffusers' configurations of the networks that an LDM yaml describes, or a family's standard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lib_hires.standalone.models.latent import Family, ModelError, Prediction
from lib_hires.standalone.models.values import Values

V = ("v", "v_pred", "v_prediction", "v-prediction", "vpred")
EPS = ("eps", "epsilon")
"""How files spell what is predicted, in small letters."""
SCALE = 0.18215  # of SD1's and SD2's latents
XL_SCALE = 0.13025

_VAE_SHAPE = {
    "z_channels": 4,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
}
_UNET_SHAPE = {"in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": 2}
_SD1_UNET = {
    "attention_resolutions": [4, 2, 1],
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "context_dim": 768,
}
_SD2_UNET = {
    "attention_resolutions": [4, 2, 1],
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "context_dim": 1024,
}
_SDXL_UNET = {
    "attention_resolutions": [4, 2],
    "channel_mult": [1, 2, 4],
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "transformer_depth": [1, 2, 10],
    "context_dim": 2048,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
_STANDARD: dict[Family, dict[str, Any]] = {"sd1": _SD1_UNET, "sd2": _SD2_UNET, "sdxl": _SDXL_UNET}
STANDARD_WIDTH = 320
"""The U-Net's first channels in every standard shape."""


class Original:
    """`model.params` of an LDM yaml, its values checked where they are read."""

    def __init__(self, params: Values, family: Family, stated: bool) -> None:
        """stated: by a yaml beside the file, not by the family's standard."""
        self.params, self.family, self.stated = params, family, stated
        name = "unet_config" if params.given("unet_config") is not None else "network_config"
        self.unet = params.section(name, "params")
        self.vae = params.section("first_stage_config", "params", "ddconfig")

    @classmethod
    def standard(cls, family: Family) -> Original:
        params = {
            "unet_config": {"params": _UNET_SHAPE | _STANDARD[family]},
            "first_stage_config": {"params": {"ddconfig": _VAE_SHAPE}},
            "scale_factor": XL_SCALE if family == "sdxl" else SCALE,
        }
        return cls(Values(Path(f"the standard {family}.yaml"), params), family, False)

    @classmethod
    def of_file(cls, file: Path, family: Family) -> Original:
        """Raises ModelError for what is no configuration of an LDM."""
        made = cls(Values(file, _params(file)), family, True)
        made.check()
        return made

    def check(self) -> None:
        """Raises ModelError where something of the networks is missing or cannot be."""
        needed = {*_UNET_SHAPE, "attention_resolutions", "channel_mult"}
        missing = {name for name in needed if self.unet.given(name) is None}
        missing |= {name for name in _VAE_SHAPE if self.vae.given(name) is None}
        if self._heads() == (0, 0):
            missing.add("num_heads")
        if missing:
            raise ModelError(f"{self.params.file}: lacks {', '.join(sorted(missing))}; {ADVICE}")
        if self.vae.given("attn_resolutions"):
            given = self.vae.given("attn_resolutions")
            raise self.vae.error("attn_resolutions", "none, for such a VAE is not supported", given)
        self.stated_prediction()

    def stated_prediction(self) -> Prediction | None:
        """What the yaml states of the prediction; None where it states nothing."""
        kind = self.params.given("parameterization")
        if kind is not None:
            if str(kind).lower() not in V + EPS:
                raise self.params.error("parameterization", "eps or v", kind)
            return "v" if str(kind).lower() in V else "eps"
        scaling = self.params.section("denoiser_config", "params", "scaling_config")
        target = str(scaling.given("target") or "").rpartition(".")[2]
        scalings: dict[str, Prediction | None] = {"": None, "VScaling": "v", "EpsScaling": "eps"}
        if target not in scalings:
            raise scaling.error("target", "one of epsilon or v", target)
        return scalings[target]

    def stated_zero_snr(self) -> bool:
        names = ("zero_snr", "zero_terminal_snr", "rescale_betas_zero_snr")
        return any(self.params.truth(name, False) for name in names)

    @property
    def embedder(self) -> Values:
        """The parameters of SD's text embedder."""
        return self.params.section("cond_stage_config", "params")

    @property
    def wants_open_clip(self) -> bool:
        target = str(self.params.section("cond_stage_config").given("target") or "")
        return "OpenCLIP" in target

    def sample_size(self, prediction: Prediction) -> tuple[int, int]:
        """(height, width) of a native latent; SD2's own v yaml states 64 for 768 pixels."""
        standard = self.unet.whole("model_channels") == STANDARD_WIDTH
        if self.family == "sd2" and prediction == "v" and standard:
            return 96, 96
        sizes = self.params.wholes("image_size", [128 if self.family == "sdxl" else 64])
        if len(sizes) > 2 or min(sizes) < 1:
            raise self.params.error("image_size", "one side or two", sizes)
        return sizes[0], sizes[-1]

    def unet_config(self) -> dict[str, Any]:
        unet, mult = self.unet, self.unet.wholes("channel_mult")
        widths = [unet.whole("model_channels") * each for each in mult]
        attends = set(unet.wholes("attention_resolutions"))
        has = [2**level in attends for level in range(len(mult))]
        heads, head_width = self._heads()
        per_block = set(unet.wholes("num_res_blocks"))
        if len(per_block) != 1:
            given = unet.given("num_res_blocks")
            raise unet.error("num_res_blocks", "the same number for each block", given)
        depth = unet.wholes("transformer_depth", [1])
        config: dict[str, Any] = {
            "in_channels": unet.whole("in_channels"),
            "out_channels": unet.whole("out_channels"),
            "block_out_channels": widths,
            "layers_per_block": per_block.pop(),
            "down_block_types": [f"{'CrossAttn' * each}DownBlock2D" for each in has],
            "up_block_types": [f"{'CrossAttn' * each}UpBlock2D" for each in reversed(has)],
            "cross_attention_dim": unet.wholes("context_dim")[0],
            # diffusers' name for the number of heads is historical.
            "attention_head_dim": [w // head_width for w in widths] if head_width else heads,
            "use_linear_projection": unet.truth("use_linear_in_transformer", False),
            "transformer_layers_per_block": depth if len(depth) > 1 else depth[0],
        }
        if unet.given("disable_self_attentions") is not None:
            config["only_cross_attention"] = unet.given("disable_self_attentions")
        if self.family == "sdxl":
            config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
            config["projection_class_embeddings_input_dim"] = unet.whole("adm_in_channels")
        return config

    def vae_config(self) -> dict[str, Any]:
        vae, mult = self.vae, self.vae.wholes("ch_mult")
        return {
            "in_channels": vae.whole("in_channels"),
            "out_channels": vae.whole("out_ch"),
            "block_out_channels": [vae.whole("ch") * each for each in mult],
            "down_block_types": ["DownEncoderBlock2D"] * len(mult),
            "up_block_types": ["UpDecoderBlock2D"] * len(mult),
            "latent_channels": vae.whole("z_channels"),
            "layers_per_block": vae.whole("num_res_blocks"),
            "scaling_factor": self.params.number("scale_factor", SCALE),
        }

    def _heads(self) -> tuple[int, int]:
        """The number of heads and their width, of which one is 0."""
        heads = max(0, self.unet.whole("num_heads", 0))
        width = max(0, self.unet.whole("num_head_channels", 0))
        return (0, width) if width else (heads, 0)


ADVICE = "give the yaml that the model was trained with"


def _params(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_bytes().decode("utf-8-sig", "replace"))
    except (OSError, yaml.YAMLError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as yaml; {ADVICE}") from error
    try:
        params = content["model"]["params"]
        (params.get("unet_config") or params["network_config"])["params"].keys()
        params["first_stage_config"]["params"]["ddconfig"].keys()
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: not an LDM configuration ({error}); {ADVICE}") from error
    found: dict[str, Any] = params
    return found
