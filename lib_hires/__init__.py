"""HiRes Guidance: good pictures above a diffusion model's native size, with no retraining."""
