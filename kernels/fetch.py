"""Fetches what kernels and TensorRT's shim are compiled with and tested against.

    python kernels/fetch.py --home DIR headers
    python kernels/fetch.py --home DIR nvrtc
    python kernels/fetch.py --home DIR gpu-packages

headers: TensorRT's public headers (Apache-2.0) of 10, 11 and RTX, into
include/tensorrt-*, from a crate that carries them; cargo itself
downloads it, and no code of it is compiled. nvrtc: NVIDIA's compiler for our
kernels, into gpu/nvrtc, from PyPI, for who has a driver and no CUDA toolkit.
gpu-packages: that and the libraries of TensorRT-RTX, into gpu-tests/tensorrt-rtx,
likewise: neither needs a GPU, so tests run the real ones. Both are under NVIDIA's
licences, which lie beside them. Each file must have the hash pinned below. Nothing
needs these to build; who calls goes on without them.
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import namedtuple
from pathlib import Path

# A release of the crate, and the folders in it that are wanted, by the names that they get.
Headers = namedtuple("Headers", "version sha256 folders")
CRATE = "trtx-sys"
# Later ones no longer carry 10.
HEADERS = (
    Headers(
        "0.5.0",
        "1efd9036abbd2775da5df4e49793ec8e656f026fb9c60dff7e95bda2d654e634",
        {"TRT-Enterprise-10.16": "tensorrt-10.16"},
    ),
    Headers(
        "0.9.1+rtx1.7",
        "5480ee056292951daa1bc74532162d6cb75190f091e45d7d97c0c356916ae171",
        {"TRT-Enterprise-11.4": "tensorrt-11.4", "TRT-RTX-1.7": "tensorrt-rtx-1.7"},
    ),
)

# A package of NVIDIA's at one version, where it goes, and which of its files.
Wheel = namedtuple("Wheel", "package sha256 size folder files")
NVRTC = Wheel(
    "nvidia-cuda-nvrtc==13.0.88",
    "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
    "90 MB, 114 MB unpacked",
    "gpu/nvrtc",
    {
        "nvidia/cu13/lib/libnvrtc.so.13": "libnvrtc.so.13",
        "nvidia/cu13/lib/libnvrtc-builtins.so.13.0": "libnvrtc-builtins.so.13.0",
        "nvidia_cuda_nvrtc-13.0.88.dist-info/licenses/License.txt": "LICENSE.txt",
    },
)
RTX = Wheel(
    "tensorrt-rtx-cu13-libs==1.7.1.116",
    "e3fd45fed001240d63304e77a2d4006319b839994237cb294b6e7ad72acaabcd",
    "95 MB, 238 MB unpacked",
    "gpu-tests/tensorrt-rtx",
    {
        "tensorrt_rtx_libs/libtensorrt_rtx.so.1": "libtensorrt_rtx.so.1",
        "tensorrt_rtx_libs/libtensorrt_onnxparser_rtx.so.1": "libtensorrt_onnxparser_rtx.so.1",
        "tensorrt_rtx_cu13_libs-1.7.1.116.dist-info/licenses/LICENSE.txt": "LICENSE.txt",
    },
)


class FetchError(Exception):
    """What went wrong, in words for the person who ran this."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command, what, folder):
    """Runs a program that fetches; it uses what the user has configured for it."""
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=folder)
    except FileNotFoundError:
        raise FetchError(f"cannot fetch {what}: there is no {command[0]}") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
        raise FetchError(f"cannot fetch {what}: {lines[0] if lines else 'it gave no reason'}")


def check(path, sha256):
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise FetchError(f"{path.name} has sha256 {found}, wanted {sha256}")


def put(made, target):
    """Gives a finished folder its name; one that is there is in the way only if it is not whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(made, target)
    say(f"ready: {target.parent.name}/{target.name}")


def headers(home, scratch):
    for release in HEADERS:
        missing = {ours for ours in release.folders.values() if not (home / "include" / ours / "NvInfer.h").is_file()}
        if not missing:
            continue
        what = f"{CRATE} {release.version} by cargo"
        say(f"fetching TensorRT's headers: {what}")
        # Downloads the crate and nothing that it depends on. Not from within this workspace, which has its
        # own versions.
        run(["cargo", "info", "--quiet", f"{CRATE}@{release.version.split('+')[0]}"], what, scratch)
        cargo = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
        crates = sorted(cargo.glob(f"registry/cache/*/{CRATE}-{release.version}.crate"))
        if not crates:
            raise FetchError(f"cargo says that it fetched {what}, and it is not in {cargo}/registry/cache")
        check(crates[-1], release.sha256)
        with tarfile.open(crates[-1]) as archive:
            for theirs, ours in release.folders.items():
                made = scratch / ours
                inside = f"{CRATE}-{release.version}/TensorRT-Headers/{theirs}/"
                for member in archive.getmembers():
                    name = member.name.removeprefix(inside)
                    if not member.isfile() or name == member.name or not name.endswith(".h") or ".." in name:
                        continue
                    (made / name).parent.mkdir(parents=True, exist_ok=True)
                    (made / name).write_bytes(archive.extractfile(member).read())
                put(made, home / "include" / ours)


def fetch_wheel(home, scratch, wheel):
    target = home / wheel.folder
    if all((target / name).is_file() for name in wheel.files.values()):
        return
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise FetchError(f"there is no {wheel.package} here for {sys.platform} on {platform.machine()}")
    say(f"fetching {wheel.package} ({wheel.size}), under NVIDIA's licence")
    scratch = Path(tempfile.mkdtemp(dir=scratch))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # The names of the same platform that wheels of different ages go by.
    pip += [f"--platform=manylinux{age}_x86_64" for age in ("_2_28", "_2_17", "2014")]
    run([*pip, "--only-binary=:all:", f"--dest={scratch}", wheel.package], wheel.package, scratch)
    (fetched,) = scratch.glob("*.whl")
    check(fetched, wheel.sha256)
    made = scratch / "made"
    made.mkdir()
    with zipfile.ZipFile(fetched) as archive:
        for name, ours in wheel.files.items():
            with archive.open(name) as source, open(made / ours, "wb") as sink:
                shutil.copyfileobj(source, sink)
    put(made, target)


def nvrtc(home, scratch):
    fetch_wheel(home, scratch, NVRTC)
    say(f"NVRTC is in {home / NVRTC.folder}, under the licence of NVIDIA's CUDA Toolkit: LICENSE.txt there")


def gpu_packages(home, scratch):
    failed = None
    for wheel in (NVRTC, RTX):
        try:
            fetch_wheel(home, scratch, wheel)
        except FetchError as error:
            # One that cannot be had does not keep the other from the tests.
            failed = error
    if failed:
        raise failed


def main():
    parser = argparse.ArgumentParser(description="Fetch TensorRT's headers, NVRTC, or what tests need.")
    parser.add_argument("--home", required=True, type=Path, metavar="DIR", help="the data folder")
    parser.add_argument("what", choices=["headers", "nvrtc", "gpu-packages"])
    arguments = parser.parse_args()
    home = arguments.home.resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=home) as scratch:
            {"headers": headers, "nvrtc": nvrtc, "gpu-packages": gpu_packages}[arguments.what](home, Path(scratch))
    except (FetchError, OSError, tarfile.TarError, zipfile.BadZipFile, KeyError) as error:
        say(f"note: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
