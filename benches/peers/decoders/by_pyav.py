"""PyAV: libav with its own FFmpeg, and swscale or Pillow for the rest.

swscale resizes from YUV at once, bicubic and antialiased. `pillow` is what training sets were made
with: all of the picture to RGB, then Pillow. `seek` goes to the keyframe before a wanted frame where
that saves decoding.
"""

from collections.abc import Iterator
from fractions import Fraction
from math import ceil

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from decoders import SIZE
from pixels import Geometry, normalize
from sampling import EVERY_S, indices, shown_every


class Decoder:
    def __init__(self, variant: str) -> None:
        cv2.setNumThreads(1)
        self.planes = self.by_pillow if variant == "pillow" else self.by_swscale
        self.seeks = variant == "seek"
        # One for all: a new one for each frame would set up swscale again.
        self.reformatter = VideoReformatter()
        self.out = np.empty((3, SIZE, SIZE), np.float32)

    def pictures(self, path: str, mode: str) -> Iterator[np.ndarray | None]:
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            if mode == "keyframes":
                stream.codec_context.skip_frame = "NONKEY"
            if mode in ("decode", "keyframes"):
                for _ in container.decode(stream):
                    yield None
            else:
                for frame in self.frames(container, stream, mode):
                    yield self.planes(frame)

    def frames(
        self, container: av.container.InputContainer, stream: av.VideoStream, mode: str
    ) -> Iterator[av.VideoFrame]:
        if self.seeks:
            yield from sought(container, stream, mode)
        elif mode == "every4s":
            yield from (frame for _, _, frame in shown_every(container, EVERY_S * 1000))
        elif mode == "count8":
            wanted = set(indices(mode, stream.frames, stream.average_rate))
            yield from (frame for n, frame in enumerate(container.decode(stream)) if n in wanted)
        else:
            yield from container.decode(stream)

    def by_swscale(self, frame: av.VideoFrame) -> np.ndarray:
        to = Geometry(frame.width, frame.height, SIZE, SIZE)
        resized = self.reformatter.reformat(
            frame, to.width, to.height, "rgb24", interpolation="BICUBIC", threads=1).to_ndarray()
        return normalize(resized[to.top : to.top + SIZE, to.left : to.left + SIZE], self.out)

    def by_pillow(self, frame: av.VideoFrame) -> np.ndarray:
        rgb = self.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        side = min(frame.width, frame.height)
        left, top = (frame.width - side) // 2, (frame.height - side) // 2
        # Makes only what the crop keeps, which is the same pixels for less.
        image = Image.fromarray(rgb).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        return normalize(np.asarray(image), self.out)


def sought(container: av.container.InputContainer, stream: av.VideoStream, mode: str) -> Iterator[av.VideoFrame]:
    """The frames shown at the wanted times, of a clip of constant rate."""
    start, ticks = stream.start_time or 0, 1 / (stream.average_rate * stream.time_base)
    keyframes = stream.index_entries
    decoded, pts = container.decode(stream), start
    for index in indices(mode, stream.frames, stream.average_rate):
        target = start + round(index * ticks)
        # Half a frame before it, so that rounding of times does not matter.
        earliest = start + ceil((index - Fraction(1, 2)) * ticks)
        keyframe = keyframes.search_timestamp(target)
        frame = None
        if keyframe >= 0 and keyframes[keyframe].timestamp > pts:
            container.seek(target, stream=stream)
            decoded = container.decode(stream)
            frame = next(decoded)
            if frame.pts >= earliest + ticks:
                # The index is of decoding times, so this keyframe may be shown after the frame wanted.
                container.seek(keyframes[keyframe].timestamp - 1, stream=stream)
                decoded, frame = container.decode(stream), None
        while frame is None or frame.pts < earliest:
            frame = next(decoded)
        pts = frame.pts
        yield frame
