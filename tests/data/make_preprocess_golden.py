"""Writes preprocess/: pictures in raw I420 and what preprocessing makes of them.

    python tests/data/make_preprocess_golden.py CLIPS

CLIPS is the folder `clips` that stages/models/fetch.py fills. Needs av, numpy
and pillow; README.md names the versions.

Each picture is a window of one decoded frame, its planes untouched. The
reference is written for exactness, not speed: float64 up to 8-bit RGB, then
Pillow's antialiased bicubic, then torchvision's centre crop.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

SIDE = 224

# name, clip, frame, left and top (even, so chroma stays aligned), width, height
PICTURES = [
    ("rabbit-320x240", "bigbuckbunny.mp4", 60, 480, 240, 320, 240),
    ("city-321x241", "cityCC0.mpg", 100, 200, 120, 321, 241),
    ("city-151x203", "cityCC0.mpg", 20, 300, 100, 151, 203),
    ("phone-176x144", "carphone_pristine.mp4", 30, 0, 0, 176, 144),
    ("bikes-640x272", "bikes.mp4", 165, 0, 0, 640, 272),
]

# ITU-R BT.601: the weights of red and blue in luma.
KR, KB = 0.299, 0.114


def decode(path, wanted):
    """Returns the Y, U and V planes of one frame, as decoded."""
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number == wanted:
                break
        else:
            sys.exit(f"{path}: no frame {wanted}")
    if frame.format.name != "yuv420p":
        sys.exit(f"{path}: pixel format {frame.format.name}, expected yuv420p")
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        planes.append(rows[: plane.height, : plane.width])
    return planes


def crop(planes, left, top, width, height):
    y, u, v = planes
    if left % 2 or top % 2 or top + height > y.shape[0] or left + width > y.shape[1]:
        sys.exit(f"window {width}x{height} at {left},{top} does not fit {y.shape[1]}x{y.shape[0]}")
    luma = np.s_[top : top + height, left : left + width]
    chroma = np.s_[top // 2 : top // 2 + (height + 1) // 2, left // 2 : left // 2 + (width + 1) // 2]
    return y[luma], u[chroma], v[chroma]


def interpolate(samples, positions):
    """Linear interpolation along the first axis, held at the ends."""
    positions = np.clip(positions, 0, len(samples) - 1)
    low = np.floor(positions).astype(int)
    high = np.minimum(low + 1, len(samples) - 1)
    share = (positions - low)[:, None]
    return samples[low] * (1 - share) + samples[high] * share


def upsample(chroma, width, height):
    """Chroma at luma's resolution. MPEG-2 puts chroma sample (i, j) at luma
    (2i, 2j + 1/2): on a column, halfway between two rows."""
    tall = interpolate(chroma.astype(np.float64), (np.arange(height) - 0.5) / 2)
    return interpolate(tall.T, np.arange(width) / 2).T


def to_rgb(y, u, v):
    """BT.601, limited range (luma 16..235, chroma 16..240), to 8-bit RGB."""
    height, width = y.shape
    luma = (y.astype(np.float64) - 16) * (255 / 219)
    blue_difference, red_difference = ((upsample(c, width, height) - 128) * (255 / 224) for c in (u, v))
    red = luma + 2 * (1 - KR) * red_difference
    blue = luma + 2 * (1 - KB) * blue_difference
    green = (luma - KR * red - KB * blue) / (1 - KR - KB)
    rgb = np.stack([red, green, blue], axis=2)
    return np.floor(np.clip(rgb, 0, 255) + 0.5).astype(np.uint8)


def resize_and_crop(rgb):
    """Shorter side to SIDE, centre SIDE x SIDE, with torchvision's rounding."""
    height, width = rgb.shape[:2]
    short, long = min(width, height), max(width, height)
    scaled = SIDE * long // short
    size = (SIDE, scaled) if width <= height else (scaled, SIDE)
    image = Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((extent - SIDE) / 2) for extent in size)
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_preprocess_golden.py CLIPS")
    out = Path(__file__).with_name("preprocess")
    out.mkdir(exist_ok=True)
    index = []
    for name, clip, frame, left, top, width, height in PICTURES:
        planes = crop(decode(Path(sys.argv[1]) / clip, frame), left, top, width, height)
        reference = resize_and_crop(to_rgb(*planes))
        assert reference.shape == (SIDE, SIDE, 3)
        (out / f"{name}.i420").write_bytes(b"".join(plane.tobytes() for plane in planes))
        (out / f"{name}.ref").write_bytes(reference.tobytes())
        index.append({"name": name, "width": width, "height": height})
        # Pictures without colour or contrast would test little.
        print(f"{name}: standard deviation {[round(float(p.std()), 1) for p in planes]}", file=sys.stderr)
    lines = ",\n".join(json.dumps(row) for row in index)
    (out / "index.json").write_text(f"[\n{lines}\n]\n", encoding="ascii")


if __name__ == "__main__":
    main()
