"""decord, which resizes in its decoder's filter chain (swscale, bicubic); OpenCV normalizes.

Asking for the size is cheaper than resizing afterwards, from 720p on by far. It takes both sides of
the size, so this peer is told each clip's shape in advance, at no cost to it.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from decord import VideoReader

from decoders import SIZE
from pixels import Geometry, normalize
from sampling import indices


class Decoder:
    def __init__(self, variant: str) -> None:
        cv2.setNumThreads(1)
        self.out = np.empty((3, SIZE, SIZE), np.float32)
        self.geometries: dict[str, Geometry] = {}

    def prepare(self, path: str) -> None:
        height, width = VideoReader(path, num_threads=1)[0].shape[:2]
        self.geometries[path] = Geometry(width, height, SIZE, SIZE)

    def pictures(self, path: str, mode: str) -> Iterator[np.ndarray]:
        to = self.geometries[path]
        reader = VideoReader(path, width=to.width, height=to.height, num_threads=1)
        if mode == "all":
            frames = (reader.next() for _ in range(len(reader)))
        else:
            frames = [reader.get_batch(indices(mode, len(reader), reader.get_avg_fps()))]
        for frame in frames:
            rgb = frame.asnumpy()
            for picture in rgb if rgb.ndim == 4 else [rgb]:
                yield normalize(picture[to.top : to.top + SIZE, to.left : to.left + SIZE], self.out)
