"""Models."""

import torch

from comfy.conds import CONDNoiseShape, CONDRegular


class BaseModel:
    """net(x, sigma, conds): the predicted image. context: of the text features."""

    def __init__(self, net, model_sampling, context=768):
        self.net = net
        self.model_sampling = model_sampling
        self.model_config = type("Config", (), {"unet_config": {"context_dim": context}})
        self.latent_format = type("Format", (), {})
        self.calls = []  # (latent's shape, sigma, conds) of each evaluation

    def process_latent_in(self, latent):
        """From the VAE's scale to the network's."""
        return latent * 0.5

    def encode_adm(self, **arguments):
        return None

    def extra_conds(self, cond, noise):
        """What sampling adds to a cond, fitted to the latent."""
        made = {}
        if "concat" in cond:
            made["c_concat"] = CONDNoiseShape(cond["concat"])
        vector = self.encode_adm(
            **{"width": noise.shape[3] * 8, "height": noise.shape[2] * 8, **cond}
        )
        return made if vector is None else {**made, "y": CONDRegular(vector)}


class SDXL(BaseModel):
    def encode_adm(self, **arguments):
        names = "height", "width", "crop_h", "crop_w"
        return torch.tensor([[float(arguments.get(name, 0)) for name in names]])


class SDXLRefiner(SDXL):
    pass
