"""The model that is loaded, without loading one."""

from modules import shared


class ModelData:
    @property
    def sd_model(self):
        return shared.loaded.sd_model


model_data = ModelData()


def apply_alpha_schedule_override(sd_model, p):
    """Gives the model the noise schedule of the host's option for this run."""
    if not hasattr(sd_model, "alphas_cumprod_original"):
        sd_model.alphas_cumprod_original = sd_model.alphas_cumprod.clone()
    sd_model.alphas_cumprod = sd_model.alphas_cumprod_original.clone()
    if shared.opts.sd_noise_schedule == "Zero Terminal SNR":
        roots = sd_model.alphas_cumprod.sqrt()
        first, last = roots[0].clone(), roots[-1].clone()
        abar = ((roots - last) * first / (first - last)) ** 2
        abar[-1] = 4.8973451890853435e-08
        sd_model.alphas_cumprod = abar
