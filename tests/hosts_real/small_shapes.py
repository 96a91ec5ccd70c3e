"""An extension for the tests: Forge and reForge know smaller models than they do by themselves.

They take a model's kind from its weights, but the widths and depths of some parts from lists of
their own. Here these parts are as the tests write them: the VAE's width, of SDXL the U-Net's depth,
the layers of the larger text encoder that it shares with Stable Diffusion 3, and in Forge the
shapes of Flux's transformer and of T5.
"""

from importlib import import_module
from importlib.util import find_spec

XL_DEPTHS = [0, 1, 1]  # transformers in each of the U-Net's input blocks
XL_TEXT_LAYERS = 3  # reForge takes what the last but one gives, and wants one more
T5 = {"d_model": 64, "d_ff": 128, "d_kv": 64, "num_heads": 1, "num_layers": 2}
VAE_CHANNELS, VAE_MULTIPLIERS = 32, (1, 2, 4, 4)
HEAD = 128  # channels of each of Flux's attention heads


def know_small_xl(kinds):
    """kinds: the module with the host's list of models."""
    kinds.SDXL.unet_config = {**kinds.SDXL.unet_config, "transformer_depth": XL_DEPTHS}


def shorten_text_encoder(owner, name, is_large):
    """owner.name: makes a configuration from a path, which is_large knows."""
    plain = getattr(owner, name)

    def shortened(path, *args, **kwargs):
        config = plain(path, *args, **kwargs)
        if is_large(str(path)):
            config.num_hidden_layers = XL_TEXT_LAYERS
        return config

    setattr(owner, name, shortened)


def know_small_vae(vae):
    """vae: the class of Forge's VAE, which reads its own configuration."""
    plain = vae.load_config
    narrow = {"block_out_channels": [VAE_CHANNELS * factor for factor in VAE_MULTIPLIERS]}
    vae.load_config = staticmethod(lambda path: {**plain(path), **narrow})


def know_small_ldm_vae(module):
    """module: where reForge makes its VAE."""
    plain = module.AutoencoderKL
    module.AutoencoderKL = lambda ddconfig, **more: plain(
        ddconfig={**ddconfig, "ch": VAE_CHANNELS}, **more
    )


def know_small_flux(detection):
    plain = detection.detect_unet_config

    def detect(weights, prefix):
        config = plain(weights, prefix)
        if config and config.get("image_model") == "flux":
            width, received = weights[f"{prefix}txt_in.weight"].shape
            config |= {"hidden_size": width, "num_heads": width // HEAD, "context_in_dim": received}
            config |= {"depth": 1, "depth_single_blocks": 1}
        return config

    detection.detect_unet_config = detect


def know_small_t5(loader):
    """loader: reads the configurations of T5 alone by this function."""
    read = loader.read_arbitrary_config
    loader.read_arbitrary_config = lambda path: read(path) | T5


if find_spec("huggingface_guess"):
    import transformers

    know_small_xl(import_module("huggingface_guess.model_list"))
    know_small_flux(import_module("huggingface_guess.detection"))
    know_small_t5(import_module("backend.loader"))
    know_small_vae(import_module("backend.nn.vae").IntegratedAutoencoderKL)
    shorten_text_encoder(
        transformers.CLIPTextConfig,
        "from_pretrained",
        lambda path: path.endswith("text_encoder_2"),
    )
elif find_spec("ldm_patched"):
    know_small_xl(import_module("ldm_patched.modules.supported_models"))
    know_small_ldm_vae(import_module("ldm_patched.modules.sd"))
    shorten_text_encoder(
        import_module("ldm_patched.modules.sd1_clip").CLIPTextConfig,
        "from_json_file",
        lambda path: path.endswith("clip_config_bigg.json"),
    )
