"""Better weights for a quantized model: rounding that minds the inputs, and biases that take back the rest.

A layer y = W x + b becomes Q x + b' with Q on the grid of its scales. Both steps need only the mean
and the covariance of x over the calibration frames, from the fp32 model:

- Rounding to the nearest makes W - Q small; what counts is (W - Q) x. GPTQ rounds one input after
  another and lets those that follow take up the error, as far as the covariance says that they can.
- What is left of the mean, (W - Q) E[x], goes into the bias. For depthwise layers this is most of
  the harm: nine weights do not average out.

Convolutions and products with a constant right factor are refined, where the bias is a constant.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

#: Places of a frame that are looked at, chosen anew for each frame and layer.
PLACES = 48
SEED = 0
#: Share of the mean variance added to each variance, so that the inverse exists.
DAMPING = 0.01
#: Inputs that GPTQ rounds before it tells the rest, which is a matter of speed only.
BLOCK = 64
#: Bytes of covariances held at once; more layers than that take another pass over the frames.
AT_ONCE = 256 << 20


class Layer:
    """One layer in both models, and what is known of its inputs."""

    def __init__(self, node, weight, bias, levels, scales):
        self.node, self.bias = node, bias
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.is_conv = node.op_type == "Conv"
        #: Whether weights are [in, out].
        self.turned = not self.is_conv and not self.attributes.get("transB", 0)
        self.shape = weight.shape
        rows = weight.T if self.turned else weight.reshape(len(weight), -1)
        self.weight = rows.astype(np.float64)
        self.levels = (levels.T if self.turned else levels.reshape(len(levels), -1)).astype(np.float64)
        self.scales = np.broadcast_to(scales.astype(np.float64).reshape(-1), len(rows))
        self.groups = self.attributes.get("group", 1)
        self.n = 0
        self.sum = self.squares = 0.0

    def covariance_bytes(self):
        return 8 * self.groups * self.weight.shape[1] ** 2

    def patches(self, x, random):
        """Inputs at some places: [groups, places, inputs]."""
        if not self.is_conv:
            rows = x.reshape(-1, x.shape[-1])
            return rows[pick(random, len(rows))][None]
        (high, wide), strides = self.shape[2:], self.attributes.get("strides", [1, 1])
        top, left, bottom, right = self.attributes.get("pads", [0] * 4)
        x = np.pad(x[0], ((0, 0), (top, bottom), (left, right)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (high, wide), axis=(1, 2))
        windows = windows[:, :: strides[0], :: strides[1]]
        places = pick(random, windows.shape[1] * windows.shape[2])
        chosen = windows[:, places // windows.shape[2], places % windows.shape[2]]
        return chosen.reshape(self.groups, -1, *chosen.shape[1:]).swapaxes(1, 2).reshape(self.groups, len(places), -1)

    def see(self, x, random):
        """Adds one frame to the moments."""
        patches = self.patches(x, random)
        self.n += patches.shape[1]
        self.sum = self.sum + patches.sum(axis=1, dtype=np.float64)
        self.squares = self.squares + patches.swapaxes(1, 2) @ patches

    def refine(self):
        """Levels and the bias's change; the moments are let go."""
        mean = self.sum / self.n
        covariance = self.squares / self.n - mean[:, :, None] * mean[:, None, :]
        self.sum = self.squares = None
        outputs = len(self.weight) // self.groups
        change = np.empty(len(self.weight))
        for group in range(self.groups):
            rows = slice(group * outputs, (group + 1) * outputs)
            self.levels[rows] = rounded(self.weight[rows], self.scales[rows], covariance[group])
            change[rows] = (self.weight[rows] - self.levels[rows] * self.scales[rows, None]) @ mean[group]
        levels = self.levels.astype(np.int8)
        return np.ascontiguousarray(levels.T if self.turned else levels.reshape(self.shape)), change


def pick(random, n):
    return np.sort(random.choice(n, min(PLACES, n), replace=False))


def rounded(weight, scales, covariance):
    """Levels of the rows of `weight`, by GPTQ."""
    n = weight.shape[1]
    damped = covariance + (DAMPING * max(np.trace(covariance) / n, 1e-12)) * np.eye(n)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    weight, levels = weight.copy(), np.empty_like(weight)
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        errors = np.empty((len(weight), end - start))
        for i in range(start, end):
            levels[:, i] = np.clip(np.round(weight[:, i] / scales), -127, 127)
            error = (weight[:, i] - levels[:, i] * scales) / upper[i, i]
            weight[:, i + 1 : end] -= error[:, None] * upper[i, i + 1 : end]
            errors[:, i - start] = error
        weight[:, end:] -= errors @ upper[start:end, end:]
    return levels


def quantized_layers(model):
    """How many layers have 8-bit weights."""
    made = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    constants = {c.name for c in model.graph.initializer}
    return sum(
        n.op_type in ("Conv", "MatMul", "Gemm") and made.get(n.input[1]) in constants for n in model.graph.node
    )


def find_bias(node, flat, constants):
    """The constant that is added to a layer's output, by name."""
    if node.op_type != "MatMul":
        return node.input[2] if len(node.input) > 2 and node.input[2] in constants else None
    takers = [n for n in flat.graph.node if node.output[0] in n.input]
    if len(takers) != 1 or takers[0].op_type != "Add":
        return None
    (other,) = [i for i in takers[0].input if i != node.output[0]] or [None]
    return other if other in constants else None


def find_layers(quantized, flat):
    """The layers of `flat` whose weights and bias `quantized` has as constants of its own."""
    constants = {c.name: c for c in flat.graph.initializer}
    held = {c.name: c for c in quantized.graph.initializer}
    uses = [i for n in flat.graph.node for i in n.input]
    layers = []
    for node in flat.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or f"{node.input[1]}_quantized" not in held:
            continue
        bias = find_bias(node, flat, constants)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and set(attributes.get("dilations", [1])) == {1}
        plain &= not attributes.get("transA", 0) and attributes.get("alpha", 1) == attributes.get("beta", 1) == 1
        if bias is None or not plain or uses.count(node.input[1]) > 1 or uses.count(bias) > 1:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        if node.op_type == "Conv" and weight.ndim != 4 or node.op_type != "Conv" and weight.ndim != 2:
            continue
        levels = numpy_helper.to_array(held[f"{node.input[1]}_quantized"])
        scales = numpy_helper.to_array(held[f"{node.input[1]}_scale"])
        layers.append(Layer(node, weight, bias, levels, scales))
    return layers


def observe(flat, name, frames, layers):
    """Shows the layers their inputs in the fp32 model."""
    probe = onnx.ModelProto()
    probe.CopyFrom(flat)
    del probe.graph.output[:]
    wanted = sorted({layer.node.input[0] for layer in layers} - {name})
    probe.graph.output.extend(helper.make_empty_tensor_value_info(w) for w in wanted)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(SEED)
    for frame in frames:
        pixels = np.ascontiguousarray(frame[None])
        values = dict(zip(wanted, session.run(wanted, {name: pixels}) if wanted else [])) | {name: pixels}
        for layer in layers:
            layer.see(values[layer.node.input[0]], random)


def set_constant(held, name, values):
    held[name].CopyFrom(numpy_helper.from_array(values, name))


def refined(quantized, flat, name, frames):
    """`quantized`, made of `flat` by quantize_static, with better weights and biases."""
    held = {c.name: c for c in quantized.graph.initializer}
    waiting = find_layers(quantized, flat)
    biases = {c.name: numpy_helper.to_array(c) for c in flat.graph.initializer if c.name in {w.bias for w in waiting}}
    while waiting:
        now, size = [], 0
        while waiting and (not now or size + waiting[0].covariance_bytes() <= AT_ONCE):
            size += waiting[0].covariance_bytes()
            now.append(waiting.pop(0))
        observe(flat, name, frames, now)
        for layer in now:
            levels, change = layer.refine()
            set_constant(held, f"{layer.node.input[1]}_quantized", levels)
            bias = biases[layer.bias] + change
            if layer.bias in held:  # it stayed fp32
                set_constant(held, layer.bias, bias.astype(np.float32))
            else:
                scale = numpy_helper.to_array(held[f"{layer.bias}_quantized_scale"]).astype(np.float64)
                bounds = np.iinfo(np.int32)
                steps = np.clip(np.round(bias / scale.reshape(-1)), bounds.min, bounds.max)
                set_constant(held, f"{layer.bias}_quantized", steps.astype(np.int32))
    return quantized
