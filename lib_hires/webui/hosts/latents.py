"""The latents of the models that the WebUI loads."""

FACTOR = 8  # pixels per latent position, for every one of them
