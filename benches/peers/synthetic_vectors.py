"""Vectors made like those of a video collection under a CLIP model.

A frame is the sum of its modality's offset, its class, scene, video, its place on the video's path and
noise, in fixed shares of energy. Sixteen frames of a video follow one another in the rows; eight videos
have a scene in the mean. Each part is drawn with a spectrum that falls off, as learned spaces have, and
all is turned at random, so that no coordinate is special. So two frames of a video are near-duplicates
(cosine 0.95 and more to the next), two of different classes still have a cosine near 0.5.

A text shares with the frames of its scene only a part of its class and scene, has an offset of its own
(the modality gap), and much of its own: its cosine to the nearest frames is about 0.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vector_set import unit

N_CLASSES = 400
FRAMES_A_VIDEO = 16
VIDEOS_A_SCENE = 8
VIDEOS_A_BLOCK = 1024

#: Shares of a frame's energy. The offset's is the cosine of two frames that have nothing in common.
FRAME = {"offset": 0.50, "class": 0.14, "scene": 0.13, "video": 0.14, "path": 0.065, "noise": 0.025}
#: A text's. `own` is in the frames' directions (other videos are near by chance), `noise` in all.
TEXT = {"offset": 0.60, "class": 0.05, "scene": 0.02, "own": 0.08, "noise": 0.25}
#: Between the two offsets: the cosine of an unrelated text and frame over the root of their shares.
OFFSETS_COSINE = 0.2
#: The scale of the i-th direction is (i + 1) to this power.
SPECTRUM = -0.4


@dataclass
class Space:
    """What all vectors have in common."""

    dim: int
    scales: np.ndarray
    turn: np.ndarray
    frame_offset: np.ndarray
    text_offset: np.ndarray
    classes: np.ndarray
    scenes: np.ndarray
    class_of_scene: np.ndarray

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Vectors of unit energy in the mean, of the falling spectrum."""
        return rng.standard_normal((n, self.dim), np.float32) * self.scales


def make_space(rng: np.random.Generator, dim: int, n_videos: int) -> Space:
    scales = np.arange(1, dim + 1, dtype=np.float32) ** SPECTRUM
    scales /= np.linalg.norm(scales)
    turn = np.linalg.qr(rng.standard_normal((dim, dim), np.float32))[0]
    one, other = np.linalg.qr(rng.standard_normal((dim, 2), np.float32))[0].T
    n_scenes = max(1, n_videos // VIDEOS_A_SCENE)
    space = Space(dim, scales, np.ascontiguousarray(turn), one,
                  OFFSETS_COSINE * one + (1 - OFFSETS_COSINE**2) ** 0.5 * other,
                  np.empty(0), np.empty(0), rng.integers(0, N_CLASSES, n_scenes))
    space.classes, space.scenes = space.draw(rng, N_CLASSES), space.draw(rng, n_scenes)
    return space


def frames_of(space: Space, rng: np.random.Generator, centres: np.ndarray, ends: np.ndarray,
              times: np.ndarray) -> np.ndarray:
    """Unit frames at `times` (V x T, in 0..1) of V videos, (V * T) x D, before the turn."""
    n_videos, n_times = times.shape
    share = {name: np.float32(value**0.5) for name, value in FRAME.items()}
    # Of unit energy in the mean over times: a quarter turn from one end to the other.
    angles = (times * np.pi / 2).astype(np.float32)[:, :, None]
    path = np.cos(angles) * ends[0][:, None] + np.sin(angles) * ends[1][:, None]
    frames = centres[:, None] + share["path"] * path
    frames = frames.reshape(n_videos * n_times, space.dim)
    frames += share["noise"] * space.dim**-0.5 * rng.standard_normal(frames.shape, np.float32)
    return frames


def centres_of(space: Space, rng: np.random.Generator, scenes: np.ndarray) -> np.ndarray:
    """What all frames of a video share, a row a video of the given scenes."""
    share = {name: np.float32(value**0.5) for name, value in FRAME.items()}
    return (share["offset"] * space.frame_offset + share["class"] * space.classes[space.class_of_scene[scenes]]
            + share["scene"] * space.scenes[scenes] + share["video"] * space.draw(rng, len(scenes)))


def texts_of(space: Space, rng: np.random.Generator, scenes: np.ndarray) -> np.ndarray:
    """A unit text a scene."""
    share = {name: np.float32(value**0.5) for name, value in TEXT.items()}
    texts = (share["offset"] * space.text_offset + share["class"] * space.classes[space.class_of_scene[scenes]]
             + share["scene"] * space.scenes[scenes] + share["own"] * space.draw(rng, len(scenes)))
    texts += share["noise"] * space.dim**-0.5 * rng.standard_normal(texts.shape, np.float32)
    return unit(texts @ space.turn)


@dataclass
class Synthetic:
    """Blocks of unit rows; the frame queries are whole when the last block was taken."""

    blocks: Iterator[np.ndarray]
    q_frame: np.ndarray
    q_text: np.ndarray
    class_of_row: np.ndarray
    class_of_text: np.ndarray


def synthetic(n_rows: int, dim: int, seed: int, n_queries: int) -> Synthetic:
    rng = np.random.default_rng(seed)
    n_videos = -(-n_rows // FRAMES_A_VIDEO)
    space = make_space(rng, dim, n_videos)
    # Some scenes have more videos than others.
    scenes = rng.integers(0, len(space.scenes), n_videos)
    asked = rng.choice(n_videos, n_queries, replace=n_videos < n_queries)
    asked_scenes = scenes[rng.integers(0, n_videos, n_queries)]
    q_frame = np.empty((n_queries, dim), np.float32)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, n_videos, VIDEOS_A_BLOCK):
            here = scenes[start : start + VIDEOS_A_BLOCK]
            centres, ends = centres_of(space, rng, here), (space.draw(rng, len(here)), space.draw(rng, len(here)))
            times = np.broadcast_to(np.linspace(0, 1, FRAMES_A_VIDEO), (len(here), FRAMES_A_VIDEO))
            # A query is a frame between two that are stored, with noise of its own.
            which = np.flatnonzero((asked >= start) & (asked < start + len(here)))
            videos = asked[which] - start
            between = rng.random((len(which), 1))
            asked_ends = (ends[0][videos], ends[1][videos])
            q_frame[which] = unit(frames_of(space, rng, centres[videos], asked_ends, between) @ space.turn)
            rows = unit(frames_of(space, rng, centres, ends, times) @ space.turn)
            yield rows[: n_rows - start * FRAMES_A_VIDEO]

    class_of_row = np.repeat(space.class_of_scene[scenes], FRAMES_A_VIDEO)[:n_rows]
    return Synthetic(blocks(), q_frame, texts_of(space, rng, asked_scenes), class_of_row,
                     space.class_of_scene[asked_scenes])
