"""Windows of the temporal attention, for clips longer than a motion module knows."""

from __future__ import annotations

from diffusers.models.attention import FreeNoiseTransformerBlock


class WindowedBlock(FreeNoiseTransformerBlock):
    """diffusers' block, whose windows of `context_length` frames are all whole.

    diffusers takes of a last window that does not fit into its stride the new frames alone, and
    divides them by another sum of weights than theirs: its clips end too dark or too pale.
    """

    def _get_frame_indices(self, num_frames: int) -> list[tuple[int, int]]:
        """The windows' first frames and ends; the last one ends with the clip."""
        last = num_frames - self.context_length
        starts = sorted({*range(0, last + 1, self.context_stride), last})
        return [(start, start + self.context_length) for start in starts]
