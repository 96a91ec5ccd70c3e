"""The host's progress bar and previews."""

PROGRESS = []  # (step, total) as the host's bar receives them


def prepare_callback(model, steps):
    def callback(step, denoised, state, total):
        PROGRESS.append((step + 1, total))

    return callback
