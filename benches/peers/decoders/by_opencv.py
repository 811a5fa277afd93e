"""OpenCV's VideoCapture, and OpenCV for the rest. Its resizes are not antialiased."""

from collections.abc import Iterator

import cv2
import numpy as np

from decoders import SIZE
from pixels import normalize, square
from sampling import indices

ONE_THREAD = [cv2.CAP_PROP_N_THREADS, 1]


class Decoder:
    def __init__(self, variant: str) -> None:
        cv2.setNumThreads(1)
        self.interpolation = cv2.INTER_CUBIC if variant == "cubic" else cv2.INTER_LINEAR
        self.seeks = variant == "seek"
        self.resized = np.empty((SIZE, SIZE, 3), np.uint8)
        self.out = np.empty((3, SIZE, SIZE), np.float32)

    def pictures(self, path: str, mode: str) -> Iterator[np.ndarray | None]:
        capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, ONE_THREAD)
        if not capture.isOpened():
            raise ValueError(f"{path}: cannot be opened")
        if mode == "decode":
            while capture.grab():
                yield None
        elif mode == "all":
            is_read, bgr = capture.read()
            while is_read:
                yield self.planes(bgr)
                # Into the same memory: a new picture's pages cost as much as the resize.
                is_read, _ = capture.read(bgr)
        else:
            yield from self.chosen(capture, mode)

    def chosen(self, capture: cv2.VideoCapture, mode: str) -> Iterator[np.ndarray]:
        """By index: a grabbed frame is only converted when it is retrieved."""
        bgr, n_grabbed = None, 0
        n_frames, rate = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)
        for index in indices(mode, n_frames, rate):
            if self.seeks:
                capture.set(cv2.CAP_PROP_POS_FRAMES, index)
                n_grabbed = index
            while n_grabbed <= index:
                if not capture.grab():
                    return
                n_grabbed += 1
            is_read, bgr = capture.retrieve(bgr)
            if is_read:
                yield self.planes(bgr)

    def planes(self, bgr: np.ndarray) -> np.ndarray:
        cv2.resize(square(bgr), (SIZE, SIZE), dst=self.resized, interpolation=self.interpolation)
        # Red and blue change places with the planes, which saves converting the picture.
        return normalize(self.resized, self.out, channels=(2, 1, 0))
