"""Which frames of a clip are wanted: clipmill's rules, for its peers.

A time asks for the frame that a player shows at that time: the last one whose presentation time is
not later. Times start at the first frame's, and no frame is chosen twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not every peer is to load PyAV's FFmpeg
    import av

COUNT = 8
EVERY_S = 4


def shown_every(container: av.container.InputContainer, every_ms: int) -> Iterator[tuple[int, int, av.VideoFrame]]:
    """Index, pts in nanoseconds and picture of the frames shown every so often, by decoding all of them."""
    stream = container.streams.video[0]
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    # In integers: time number k is asked for before `pts` if k * step < (pts - first) * tick.
    tick, step = stream.time_base.numerator * 1000, every_ms * stream.time_base.denominator
    held, first, n_asked, index, pts, ns = None, 0, 0, -1, 0, 1e9 * float(stream.time_base)
    for index, frame in enumerate(container.decode(stream)):
        pts = frame.pts if frame.pts is not None else pts + (frame.duration or 1)
        if held is None:
            first = pts
        elif n_asked * step < (pts - first) * tick:
            yield index - 1, round(held_pts * ns), held
            n_asked = -(-(pts - first) * tick // step)
        held, held_pts = frame, pts
    if held is None:
        raise ValueError("has no frames")
    # The last frame is shown for as long as it says.
    if n_asked * step < (held_pts - first + max(held.duration or 1, 1)) * tick:
        yield index, round(held_pts * ns), held


def indices(mode: str, n_frames: int, rate: Fraction | float) -> list[int]:
    """The frames that a mode wants of a clip of constant rate, for peers that choose by index.

    So OpenCV's and decord's users choose. It is as good as the container's count and rate are.
    """
    if mode == "all":
        return list(range(n_frames))
    if mode == "count8":
        return sorted({n_frames * (2 * k + 1) // (2 * COUNT) for k in range(COUNT)})
    # A rate in floating point may fall short of a whole frame.
    chosen = (int(k * EVERY_S * rate + 1e-6) for k in range(n_frames))
    return sorted({i for i in chosen if i < n_frames})
