"""From a node's inputs to a sampled latent."""

import copy

from comfy.patcher_extension import WrappersMP, wrapped
from comfy.samplers import Guider


def sample_custom(
    model,
    noise,
    cfg,
    sampler,
    sigmas,
    positive,
    negative,
    latent_image,
    noise_mask=None,
    callback=None,
    disable_pbar=False,
    seed=None,
):
    guider = Guider(model, [positive, negative], cfg)
    guider.fitted(noise)
    options = {
        key: copy.copy(part) for key, part in guider.model_options.items()
    }  # of this run's sampler
    options["transformer_options"] = {
        **guider.model_options["transformer_options"],
        "wrappers": {
            kind: {key: list(part) for key, part in by_key.items()}
            for kind, by_key in guider.model_options["transformer_options"]["wrappers"].items()
        },
        "sample_sigmas": sigmas,
    }
    total = len(sigmas) - 1
    steps = callback and (lambda s: callback(s["i"], s["denoised"], s["x"], total))
    run = wrapped(WrappersMP.SAMPLER_SAMPLE, sampler.sample, options)
    return run(
        guider, sigmas, {"model_options": options, "seed": seed}, steps, noise, latent_image, None
    )
