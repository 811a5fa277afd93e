"""torchcodec, and torch for the rest, bicubic and antialiased.

torch resizes bytes as it does floats, within 1 of 255, in a tenth of the time. torchcodec's own transforms
(which are bilinear) cost more than resizing afterwards what the crop keeps.

Of an AVI with B-frames torchcodec counts the times from one frame too late: it gives other frames than
those asked for, and fails at the last one, which is therefore not asked for.
"""

from collections.abc import Iterator

import torch
from torch.nn.functional import interpolate
from torchcodec.decoders import VideoDecoder

from decoders import SIZE
from pixels import BIAS, SCALE
from sampling import COUNT, EVERY_S, indices

#: Small pictures gain from batches, large ones lose in them what the cache would have kept.
BATCH_BYTES = 2 << 20


class Decoder:
    def __init__(self, variant: str) -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self.scale, self.bias = (torch.from_numpy(v)[:, None, None] for v in (SCALE, BIAS))
        self.out = torch.empty((COUNT, 3, SIZE, SIZE))

    def pictures(self, path: str, mode: str) -> Iterator[torch.Tensor]:
        decoder = VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="exact")
        about = decoder.metadata
        if mode == "count8":
            yield from self.planes(decoder.get_frames_at(indices(mode, len(decoder), 0)).data)
        elif mode == "every4s":
            start, end = about.begin_stream_seconds, about.end_stream_seconds
            times = [start + EVERY_S * k for k in range(int((end - start) / EVERY_S) + 1)]
            yield from self.planes(decoder.get_frames_played_at([t for t in times if t < end]).data)
        else:
            n_batch = max(1, min(COUNT, BATCH_BYTES // (3 * about.width * about.height)))
            first, n_frames = 0, len(decoder)
            while first < n_frames:
                batch = decoder.get_frames_in_range(first, min(first + n_batch, n_frames))
                if first == 0 and batch.pts_seconds[0] > about.begin_stream_seconds:
                    n_frames -= 1
                yield from self.planes(batch.data)
                first += n_batch

    def planes(self, rgb: torch.Tensor) -> Iterator[torch.Tensor]:
        """u8 [n, 3, height, width] to n pictures, at most COUNT at a time."""
        height, width = rgb.shape[-2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        rgb = rgb[:, :, top : top + side, left : left + side]
        for some in rgb.split(COUNT):
            small = interpolate(some, (SIZE, SIZE), mode="bicubic", antialias=True)
            yield from self.out[: len(small)].copy_(small).mul_(self.scale).add_(self.bias)
