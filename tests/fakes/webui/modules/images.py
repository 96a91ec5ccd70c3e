"""Saving, which only takes notes here, and resizing."""

from PIL import Image

saved = []  # (size, suffix, info, seed, prompt, place in the batch)


def save_image(image, path, basename, seed, prompt, extension, info=None, p=None, suffix=""):
    saved.append((image.size, suffix, info, seed, prompt, p.batch_index))


def resize_image(resize_mode, im, width, height, upscaler_name=None):
    assert resize_mode == 0
    filters = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
    return im.resize((width, height), filters[upscaler_name])
