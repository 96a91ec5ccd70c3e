"""Saving, which only takes notes here."""

saved = []  # (size, suffix, info, seed, prompt)


def save_image(image, path, basename, seed, prompt, extension, info=None, p=None, suffix=""):
    saved.append((image.size, suffix, info, seed, prompt))
