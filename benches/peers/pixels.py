"""From RGB bytes to a model's planar floats, shared by the peers."""

from functools import cache

import cv2
import numpy as np

# Of OpenAI's CLIP, for values in 0..1.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
# normalized = x * SCALE + BIAS for x in 0..255
SCALE = (1 / (255 * STD)).astype(np.float32)
BIAS = (-MEAN / STD).astype(np.float32)


@cache
def scratch(height: int, width: int) -> list[np.ndarray]:
    """Planes to split pictures into: new memory for each would cost a tenth more."""
    return [np.empty((height, width), np.uint8) for _ in range(3)]


def normalize(rgb: np.ndarray, out: np.ndarray, channels: tuple[int, int, int] = (0, 1, 2)) -> np.ndarray:
    """Interleaved bytes to normalized planes, by the fastest of a dozen ways tried.

    Of others, a table a channel (LUT) takes 1.1 times as long, blobFromImage 1.5 times or more.
    """
    for channel, plane in zip(channels, cv2.split(rgb, scratch(*rgb.shape[:2]))):
        scale, bias = float(SCALE[channel]), float(BIAS[channel])
        cv2.addWeighted(plane, scale, plane, 0, bias, dst=out[channel], dtype=cv2.CV_32F)
    return out


class Geometry:
    """Sizes of one resize and crop."""

    def __init__(self, width: int, height: int, resize_to: int, size: int) -> None:
        shorter = min(width, height)
        self.width = width * resize_to // shorter
        self.height = height * resize_to // shorter
        self.left = (self.width - size) // 2
        self.top = (self.height - size) // 2
        self.size = size


def square(pixels: np.ndarray) -> np.ndarray:
    """The middle of a picture [height, width, ...], which is what a square crop keeps of it.

    Where the shorter side is resized to the crop's size, cropping first gives the same pixels for less.
    """
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]
