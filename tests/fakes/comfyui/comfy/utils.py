"""Whether the host draws progress bars in its console."""

PROGRESS_BAR_ENABLED = False
