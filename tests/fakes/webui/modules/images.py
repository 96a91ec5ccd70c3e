"""Saving, which only takes notes here."""

saved = []  # (size, suffix, info, seed, prompt, place in the batch)


def save_image(image, path, basename, seed, prompt, extension, info=None, p=None, suffix=""):
    saved.append((image.size, suffix, info, seed, prompt, p.batch_index))
