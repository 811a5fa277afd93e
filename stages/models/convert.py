"""Turns EfficientNet-Lite0's published weights into ONNX, without PyTorch.

The weights come as a pickle in the form `torch.save` wrote before it used zip
files. A pickle may name any function for the reader to call; this reader
knows four names and refuses the rest, so the file cannot run code.

The network is that of Tan and Le's EfficientNet (2019) in its "lite" form:
no squeeze-and-excite, ReLU6 for swish. Batch normalization is folded into the
convolutions in float64.
"""

import collections
import io
import pickle
import struct

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 224
CLASSES = 1000
EMBEDDING = 1280

# The first two pickles of the old `torch.save` form: a magic number, a version.
MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001

STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}

# Every stage: (blocks, kernel, stride of its first block, expansion, channels).
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
# TensorFlow's value for this family; PyTorch's default of 1e-5 is wrong here.
BATCH_NORM_EPSILON = 1e-3

# What the unpickler makes of a tensor until the data behind it has been read.
View = collections.namedtuple("View", "key offset shape strides")


class WeightsReader(pickle.Unpickler):
    """Unpickles tensors and ordered dictionaries, and nothing else."""

    def __init__(self, stream):
        super().__init__(stream)
        self.types = {}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda key, offset, shape, strides, *_: View(key, offset, shape, strides)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"the weights name {module}.{name}, which is not allowed")

    def persistent_load(self, pid):
        kind, dtype, key, _location, _count, _view = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"the weights hold a {kind!r}, expected a storage")
        self.types[key] = dtype
        return key


def read_weights(data):
    """Returns {name: array} from the bytes of an old-form `torch.save` file."""
    stream = io.BytesIO(data)
    for wanted in (MAGIC, VERSION):
        found = WeightsReader(stream).load()
        if found != wanted:
            raise ValueError(f"not an old-form torch file: found {found!r}, expected {wanted!r}")
    WeightsReader(stream).load()  # the writer's byte order and type sizes
    reader = WeightsReader(stream)
    views = reader.load()
    storages = {}
    for key in WeightsReader(stream).load():
        dtype = reader.types[key]
        (count,) = struct.unpack("<q", stream.read(8))
        storages[key] = np.frombuffer(stream.read(count * dtype.itemsize), dtype)
        if storages[key].size != count:
            raise ValueError(f"storage {key} has {storages[key].size} values, expected {count}")
    return {name: gather(view, storages[view.key]) for name, view in views.items()}


def gather(view, storage):
    """Copies a tensor out of its storage, in the usual order of axes; the file
    keeps some in TensorFlow's."""
    last = view.offset + sum((size - 1) * step for size, step in zip(view.shape, view.strides))
    if min(view.offset, *view.shape, *view.strides, storage.size - 1 - last) < 0:
        raise ValueError(f"{view} does not fit a storage of {storage.size} values")
    strides = [step * storage.itemsize for step in view.strides]
    return np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides).copy()


class Graph:
    """Grows the ONNX graph, taking each weight out of `weights` as it is used."""

    def __init__(self, weights):
        self.weights = dict(weights)
        self.nodes = []
        self.constants = []

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name

    def add(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def convolution(self, x, name, weight, norm, side, shape, stride=1, groups=1, relu6=True):
        """Convolution, folded normalization, activation; returns (value, side)."""
        kernels = self.weights.pop(f"{weight}.weight").astype(np.float64)
        if kernels.shape != shape:
            raise ValueError(f"{weight} is {kernels.shape}, expected {shape}")
        gain, shift, mean, variance = (
            self.weights.pop(f"{norm}.{part}").astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / np.sqrt(variance + BATCH_NORM_EPSILON)
        # TensorFlow's "SAME": the odd pixel of padding goes below and right.
        out = -(-side // stride)
        padding = max((out - 1) * stride + shape[2] - side, 0)
        before, after = padding // 2, padding - padding // 2
        x = self.add(
            "Conv",
            [
                x,
                self.constant(f"{name}.weight", kernels * scale[:, None, None, None]),
                self.constant(f"{name}.bias", shift - mean * scale),
            ],
            f"{name}.conv",
            kernel_shape=list(shape[2:]),
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=groups,
        )
        return (self.add("Clip", [x, "zero", "six"], f"{name}.relu6") if relu6 else x), out


def efficientnet_lite0(weights):
    """Returns the model: `pixel_values` f32 [batch, 3, 224, 224] (RGB planes,
    (x - 127) / 128) to `logits` [batch, 1000] and `embedding` [batch, 1280]."""
    g = Graph(weights)
    g.constant("zero", 0.0)
    g.constant("six", 6.0)
    shape = (STEM_CHANNELS, 3, 3, 3)
    x, side = g.convolution("pixel_values", "stem", "_conv_stem", "_bn0", SIDE, shape, stride=2)
    channels = STEM_CHANNELS
    block = 0
    for blocks, kernel, first_stride, expansion, out in STAGES:
        for nth in range(blocks):
            source, name = f"_blocks.{block}", f"block{block}"
            stride = first_stride if nth == 0 else 1
            entry, wide = x, channels * expansion
            if expansion != 1:
                shape = (wide, channels, 1, 1)
                x, side = g.convolution(
                    x, f"{name}.expand", f"{source}._expand_conv", f"{source}._bn0", side, shape
                )
            shape = (wide, 1, kernel, kernel)
            x, side = g.convolution(
                x, f"{name}.depthwise", f"{source}._depthwise_conv", f"{source}._bn1", side, shape, stride, wide
            )
            shape = (out, wide, 1, 1)
            x, side = g.convolution(
                x, f"{name}.project", f"{source}._project_conv", f"{source}._bn2", side, shape, relu6=False
            )
            if stride == 1 and channels == out:
                x = g.add("Add", [x, entry], f"{name}.sum")
            channels = out
            block += 1
    shape = (EMBEDDING, channels, 1, 1)
    x, _ = g.convolution(x, "head", "_conv_head", "_bn1", side, shape)
    x = g.add("GlobalAveragePool", [x], "pooled")
    x = g.add("Flatten", [x], "embedding", axis=1)
    classifier = [
        g.constant("classifier.weight", g.weights.pop("_fc.weight")),
        g.constant("classifier.bias", g.weights.pop("_fc.bias")),
    ]
    g.add("Gemm", [x, *classifier], "logits", transB=1)

    unused = [name for name in g.weights if not name.endswith("num_batches_tracked")]
    if unused:
        raise ValueError(f"{len(unused)} weights have no place in the network, first {unused[0]}")

    def value(name, *dims):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims])

    graph = helper.make_graph(
        g.nodes,
        "efficientnet-lite0",
        [value("pixel_values", 3, SIDE, SIDE)],
        [value("logits", CLASSES), value("embedding", EMBEDDING)],
        g.constants,
    )
    # Opset 13 and IR 8 are old enough for every runtime in use.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
