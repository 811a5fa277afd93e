"""Makes the int8 form of an image tower, by frames that show what its values are like.

    quantize.py MODEL.onnx OUT.onnx --input NAME --calibration FRAMES.npy
                [--output NAME...] [--method best|minmax|refined]

FRAMES.npy holds f32 tensors as the model takes them, [n, 3, height, width], clip after clip. It is
mapped, not read whole. The first three quarters calibrate, the last quarter measures: vectors of the
int8 model against the fp32 model's. `best` tries the methods in order and keeps the one with the
greatest mean cosine:

minmax   ONNX Runtime's static quantization: per-channel 8-bit weights, an 8-bit range a tensor, from
         the least and greatest value seen.
refined  that, with weights rounded so that a layer's outputs change least, not the weights (GPTQ:
         Frantar et al., 2023), and biases that take back the mean error that is left (Nagel et al.,
         "Data-Free Quantization", 2019). Same operations, same speed.

Convolutions with all that lies between them are quantized; in a model of mostly matrix products only
the products with constants are. A layer that gives an output itself stays fp32.

The same files give the same bytes. Progress goes to stderr; stdout has one line of JSON:
    {"method": m, "n_calibration": n, "n_held_out": n, "mean_cosine": x, "least_cosine": x,
     "top10_overlap": x, "quantized_layers": n, "tried": {method: mean_cosine}}
of the worst output where there are several; top10_overlap is the share of a frame's ten nearest
held-out frames by fp32 that are among its ten nearest by int8, null below 22 of them.
Needs numpy, onnx and onnxruntime.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

# More threads would add in another order, and give other bytes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import refine

METHODS = ("minmax", "refined")
NEAREST = 10
#: Calibration and measuring need some of each.
LEAST_FRAMES = 8


class QuantizeError(Exception):
    """What went wrong, in words for the person who ran it."""


def say(text):
    print(text, file=sys.stderr, flush=True)


class Reader(CalibrationDataReader):
    """Gives the calibrator one frame at a time."""

    def __init__(self, name, frames):
        self.feeds = ({name: np.ascontiguousarray(frames[i : i + 1])} for i in range(len(frames)))

    def get_next(self):
        return next(self.feeds, None)


def open_session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def vectors(model, name, frames, outputs):
    """Unit vectors of the frames, an array an output."""
    session = open_session(model)
    rows = [session.run(outputs, {name: np.ascontiguousarray(frames[i : i + 1])}) for i in range(len(frames))]
    found = [np.concatenate(output).reshape(len(frames), -1) for output in zip(*rows)]
    return [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in found]


def nearest(rows):
    """The nearest others of each row, in no order."""
    likeness = rows @ rows.T
    np.fill_diagonal(likeness, -np.inf)
    return np.argpartition(-likeness, NEAREST, axis=1)[:, :NEAREST]


def compare(found, wanted):
    """The facts of the output that fares worst."""
    facts = []
    for ours, theirs in zip(found, wanted):
        cosines = np.sum(ours * theirs, axis=1, dtype=np.float64)
        overlap = None
        if len(ours) > 2 * NEAREST + 1:
            pairs = zip(nearest(ours), nearest(theirs))
            overlap = float(np.mean([len(set(a) & set(b)) / NEAREST for a, b in pairs]))
        facts.append({"mean_cosine": float(cosines.mean()), "least_cosine": float(cosines.min()), "top10_overlap": overlap})
    return min(facts, key=lambda f: f["mean_cosine"])


def read_frames(path):
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise QuantizeError(f"cannot read the frames of {path}: {error}") from error
    if frames.ndim != 4 or frames.dtype != np.float32:
        raise QuantizeError(f"{path} is {frames.dtype} {list(frames.shape)}, expected float32 [n, 3, height, width]")
    if len(frames) < LEAST_FRAMES:
        raise QuantizeError(f"{path} has {len(frames)} frames, needs at least {LEAST_FRAMES}; some hundred are good")
    for i, frame in enumerate(frames):
        if not np.isfinite(frame).all():
            raise QuantizeError(f"{path}: frame {i} has values that are not finite")
    return frames


def check_model(path, name, outputs, frames):
    """Checks the model; returns the names of the outputs to measure."""
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own kinds among them
        raise QuantizeError(f"cannot read the model {path}: {error}") from error
    constants = {c.name for c in model.graph.initializer}
    inputs = {i.name: i for i in model.graph.input if i.name not in constants}
    if list(inputs) != [name]:
        raise QuantizeError(f"{path} has the inputs {', '.join(inputs)}, expected only {name}")
    dims = [d.dim_value or None for d in inputs[name].type.tensor_type.shape.dim]
    if len(dims) != 4 or any(want and want != has for want, has in zip(dims[1:], frames.shape[1:])):
        raise QuantizeError(f"{path} takes {dims}, the frames are {list(frames.shape)}")
    if dims[0] not in (None, 1):
        raise QuantizeError(f"{path} takes batches of {dims[0]} only, needs a dynamic batch")
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < 13:
        raise QuantizeError(f"{path} has opset {opset}; per-channel scales need 13")
    if any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.node):
        raise QuantizeError(f"{path} is quantized already")
    known = [o.name for o in model.graph.output]
    unknown = [o for o in outputs if o not in known]
    if unknown:
        raise QuantizeError(f"{path} has the outputs {', '.join(known)}, not {', '.join(unknown)}")
    return outputs or known


def plan(model):
    """What to quantize, as quantize_static's arguments."""
    outputs = {o.name for o in model.graph.output}
    constants = {c.name for c in model.graph.initializer}
    convolutions = sum(n.op_type == "Conv" for n in model.graph.node)
    products = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in constants]
    if not convolutions and not products:
        raise QuantizeError("the model has no convolution and no product with constants: nothing to quantize")
    # Its cost is small, and no later layer evens out its error.
    last = [n.name for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and outputs & set(n.output)]
    if convolutions > len(products):
        return {"nodes_to_exclude": last, "activation_type": QuantType.QUInt8}
    return {
        "nodes_to_exclude": last,
        "op_types_to_quantize": ["Conv", "MatMul", "Gemm"],
        "activation_type": QuantType.QUInt8,
        "extra_options": {"MatMulConstBOnly": True},
    }


def make(method, flat, name, frames, folder):
    """One method's model; `refined` builds on minmax's."""
    made = folder / f"{method}.onnx"
    if method == "minmax":
        options = {"per_channel": True, "weight_type": QuantType.QInt8, "quant_format": QuantFormat.QDQ}
        quantize_static(flat, made, Reader(name, frames), **options, **plan(onnx.load(flat)))
    else:
        model = refine.refined(onnx.load(folder / "minmax.onnx"), onnx.load(flat), name, frames)
        onnx.save(model, made)
    return made


def quantize(args):
    if not args.out.parent.is_dir():
        raise QuantizeError(f"cannot write {args.out}: there is no folder {args.out.parent}")
    frames = read_frames(args.calibration)
    outputs = check_model(args.model, args.input, args.output, frames)
    n_held_out = max(len(frames) // 4, 1)
    calibration, held_out = frames[: len(frames) - n_held_out], frames[len(frames) - n_held_out :]
    wanted = vectors(args.model, args.input, held_out, outputs)
    methods = METHODS if args.method == "best" else METHODS[: METHODS.index(args.method) + 1]
    tried = {}
    with tempfile.TemporaryDirectory(prefix="quantize-") as temporary:
        folder = Path(temporary)
        flat = folder / "flat.onnx"
        quant_pre_process(str(args.model), str(flat), skip_symbolic_shape=True)
        for method in methods:
            say(f"{method}: {len(calibration)} frames")
            made = make(method, flat, args.input, calibration, folder)
            tried[method] = compare(vectors(made, args.input, held_out, outputs), wanted)
            say(f"{method}: mean cosine {tried[method]['mean_cosine']:.4f}, least {tried[method]['least_cosine']:.4f}")
        chosen = args.method if args.method in tried else max(tried, key=lambda m: tried[m]["mean_cosine"])
        model = onnx.load(folder / f"{chosen}.onnx")
    layers = refine.quantized_layers(model)
    if not layers:
        raise QuantizeError(f"{args.model}: no layer could be quantized")
    aside = args.out.with_name(args.out.name + ".partial")
    onnx.save(model, aside)
    aside.rename(args.out)
    return {
        "method": chosen,
        "n_calibration": len(calibration),
        "n_held_out": n_held_out,
        **tried[chosen],
        "quantized_layers": layers,
        "tried": {method: facts["mean_cosine"] for method, facts in tried.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--input", required=True, help="its name")
    parser.add_argument("--output", nargs="+", default=[], help="those that are measured; all without it")
    parser.add_argument("--calibration", type=Path, required=True, metavar="FRAMES.npy")
    parser.add_argument("--method", choices=["best", *METHODS], default="best")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # the quantizer's advice, which is followed
    onnxruntime.set_default_logger_severity(3)
    try:
        print(json.dumps(quantize(args)))
    except (QuantizeError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
