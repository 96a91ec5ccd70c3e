"""Small helpers of the host."""

PROGRESS_BAR_ENABLED = False


def repeat_to_batch_size(tensor, batch_size):
    times = -(-batch_size // len(tensor))
    return tensor.repeat(times, 1, 1, 1)[:batch_size]
