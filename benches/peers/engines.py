"""Inference engines, one way to call them all, each set up as its users would who look for speed.

An engine is made of a model's file once and runs on `threads` threads. Pools do not spin and are not
bound to cores: both would take from the decoders beside them.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

ENGINES = ("onnxruntime", "openvino-ep", "openvino")
PRECISIONS = ("fp32", "bf16")

#: f32 [n, 3, height, width] to the wanted outputs; n is at most the batch.
Run = Callable[[np.ndarray], list[np.ndarray]]


def engine_and_precision(text: str) -> tuple[str, str]:
    """From ENGINE:PRECISION, for argparse."""
    engine, _, precision = text.partition(":")
    if engine not in ENGINES or precision not in PRECISIONS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not ENGINE:PRECISION, of {', '.join(ENGINES)} and {', '.join(PRECISIONS)}")
    return engine, precision


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16; whether it does so faster than f32 is another matter (see README)."""
    return any("bf16" in line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))


def openvino_options(precision: str, threads: int) -> dict[str, str]:
    """Without pinning, or all engines of a process meet on its first core."""
    return {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision], "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads), "ENABLE_CPU_PINNING": "NO"}


def padded(run: Run, batch: int) -> Run:
    """Fills a last, smaller batch up, where an engine is compiled for one size."""
    def run_padded(pixels: np.ndarray) -> list[np.ndarray]:
        n = len(pixels)
        if n < batch:
            pixels = np.concatenate([pixels, np.zeros((batch - n, *pixels.shape[1:]), pixels.dtype)])
        return [output[:n] for output in run(pixels)]
    return run_padded


def by_onnxruntime(file: Path, shape: tuple[int, ...], outputs: list[str], threads: int, providers: list) -> Run:
    import onnxruntime

    name = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if name not in onnxruntime.get_available_providers():
        raise SystemExit(f"this Python's onnxruntime has no {name}: it needs onnxruntime-openvino, see README.md")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    if name not in session.get_providers():
        raise SystemExit(f"{name} did not load; onnxruntime said why above")
    (pixels,) = session.get_inputs()
    return lambda x: session.run(outputs, {pixels.name: x})


def by_openvino(file: Path, shape: tuple[int, ...], outputs: list[str], threads: int, precision: str) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    model.reshape(list(shape))
    compiled = core.compile_model(model, "CPU", openvino_options(precision, threads))
    ports = [compiled.output(name) for name in outputs]
    request = compiled.create_infer_request()

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        found = request.infer(pixels, share_inputs=True, share_outputs=False)
        return [found[port] for port in ports]
    return run


def open_engine(engine: str, precision: str, file: Path, pixels: str, shape: tuple[int, ...],
                outputs: list[str], threads: int) -> Run:
    """`shape` is that of a whole batch; `pixels` the input's name."""
    if precision == "bf16" and engine == "onnxruntime":
        raise SystemExit("onnxruntime's CPU provider has no bf16 on this architecture")
    if precision == "bf16" and not has_bf16():
        raise SystemExit("this CPU has no bf16; OpenVINO would silently use f32")
    if engine == "openvino":
        return padded(by_openvino(file, shape, outputs, threads, precision), shape[0])
    if engine == "onnxruntime":
        return by_onnxruntime(file, shape, outputs, threads, ["CPUExecutionProvider"])
    options = {"device_type": "CPU", "load_config": json.dumps({"CPU": openvino_options(precision, threads)}),
               "reshape_input": f"{pixels}[{','.join(map(str, shape))}]"}
    return padded(by_onnxruntime(file, shape, outputs, threads, [("OpenVINOExecutionProvider", options)]), shape[0])
