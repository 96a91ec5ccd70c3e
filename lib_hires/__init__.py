"""HiRes Guidance: good images above a diffusion model's native size, with no retraining."""
