"""A U-Net that stands in for the model's own, such as one that was compiled for certain sizes."""

current_unet = None
