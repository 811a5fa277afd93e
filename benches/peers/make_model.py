"""Makes a model of CLIP ViT-B/32's shape with random weights: its cost, and no meaning.

    make_model.py FOLDER [--seed 0] [--layers 12] [--levels N]

CLIP's own weights are not in any registry. Speed does not depend on weights, so this model stands
in for it where only the encoder's speed is asked. With --levels a weight has one of N values, so that the
file packs into an eighth. FOLDER gets `image.onnx` (350 MB) and the card
`model.toml`; clipmill opens it as a model without a text tower.

The graph is what PyTorch's exporter writes for CLIP's image tower (Radford et al., 2021): MatMul and
Add for linear layers, LayerNormalization and Softmax as one node each, batch from the input's shape.
Weights are scaled so that attention is not uniform and pictures keep their differences to the end.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, PATCH, WIDTH, HEADS, DIM = 224, 32, 768, 12, 512
TOKENS = (SIDE // PATCH) ** 2 + 1
EPSILON = 1e-5

CARD = """\
# Made by benches/peers/make_model.py: CLIP ViT-B/32's shape, random weights.
name = "vit-b32-random"
licence = "none: random weights"
source = "benches/peers/make_model.py --seed {seed} --layers {layers}"

[image]
file = "image.onnx"
input = "pixel_values"
width = 224
height = 224
resize = "shorter-side"
resize_to = 224
filter = "bicubic"
mean = [0.48145466, 0.4578275, 0.40821073]
std = [0.26862954, 0.26130258, 0.27577711]
embedding = "image_embeds"
dim = 512

[joint]
kind = "direct"
dim = 512
"""


class Graph:
    """Grows the graph; a node's name is that of its output."""

    def __init__(self, seed: int, levels: int = 0) -> None:
        self.levels = levels
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: object, dtype: type = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def normal(self, name: str, shape: tuple[int, ...], scale: float) -> str:
        values = self.random.standard_normal(shape, np.float32)
        if self.levels:
            # Evenly from -2.5 to 2.5 deviations.
            step = np.float32(5 / max(self.levels - 1, 1))
            values = (np.clip(values, -2.5, 2.5) / step + 0.5 * (self.levels % 2 == 0)).round() * step
            values -= np.float32(0.5 * (self.levels % 2 == 0)) * step
        return self.constant(name, values * np.float32(scale))

    def add(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def linear(self, x: str, name: str, n_in: int, n_out: int, gain: float = 1.0) -> str:
        """MatMul and Add, with outputs about `gain` times as large as the inputs."""
        weight = self.normal(f"{name}.weight", (n_in, n_out), gain / n_in**0.5)
        bias = self.normal(f"{name}.bias", (n_out,), 0.02)
        return self.add("Add", [self.add("MatMul", [x, weight], f"{name}.matmul"), bias], name)

    def layer_norm(self, x: str, name: str) -> str:
        gain = self.constant(f"{name}.weight", 1 + 0.1 * self.random.standard_normal(WIDTH))
        bias = self.normal(f"{name}.bias", (WIDTH,), 0.05)
        return self.add("LayerNormalization", [x, gain, bias], name, axis=-1, epsilon=EPSILON)


def embeddings(g: Graph, pixels: str) -> str:
    """Patches, the class token before them, and positions: [n, TOKENS, WIDTH]."""
    kernels = g.normal("patch.weight", (WIDTH, 3, PATCH, PATCH), (3 * PATCH * PATCH) ** -0.5)
    x = g.add("Conv", [pixels, kernels], "patch", kernel_shape=[PATCH, PATCH], strides=[PATCH, PATCH])
    x = g.add("Reshape", [x, g.constant("patch.shape", [0, WIDTH, -1], np.int64)], "patch.flat")
    x = g.add("Transpose", [x], "patch.tokens", perm=[0, 2, 1])
    batch = g.add("Gather", [g.add("Shape", [pixels], "shape"), g.constant("first", [0], np.int64)], "batch")
    shape = g.add("Concat", [batch, g.constant("class.one", [1, WIDTH], np.int64)], "class.shape", axis=0)
    token = g.add("Expand", [g.normal("class.embedding", (1, 1, WIDTH), 0.3), shape], "class")
    x = g.add("Concat", [token, x], "tokens", axis=1)
    return g.add("Add", [x, g.normal("position.embedding", (1, TOKENS, WIDTH), 0.1)], "embeddings")


def attention(g: Graph, x: str, name: str) -> str:
    """Multi-head self-attention."""
    def heads(part: str, perm: list[int], gain: float) -> str:
        y = g.add("Reshape", [g.linear(x, f"{name}.{part}", WIDTH, WIDTH, gain), "heads.shape"], f"{name}.{part}.split")
        return g.add("Transpose", [y], f"{name}.{part}.heads", perm=perm)

    # With gains of 1.5, scores before the softmax deviate by about 2.
    query, key, value = heads("q", [0, 2, 1, 3], 1.5), heads("k", [0, 2, 3, 1], 1.5), heads("v", [0, 2, 1, 3], 1.0)
    scores = g.add("MatMul", [g.add("Mul", [query, "scale"], f"{name}.scaled"), key], f"{name}.scores")
    mixed = g.add("MatMul", [g.add("Softmax", [scores], f"{name}.weights", axis=-1), value], f"{name}.mixed")
    y = g.add("Transpose", [mixed], f"{name}.unsplit", perm=[0, 2, 1, 3])
    y = g.add("Reshape", [y, "tokens.shape"], f"{name}.joined")
    return g.linear(y, f"{name}.out", WIDTH, WIDTH)


def mlp(g: Graph, x: str, name: str) -> str:
    """Four times as wide within; OpenAI's quick GELU, x * sigmoid(1.702 x)."""
    x = g.linear(x, f"{name}.fc1", WIDTH, 4 * WIDTH)
    gate = g.add("Sigmoid", [g.add("Mul", [x, "quick"], f"{name}.scaled")], f"{name}.gate")
    return g.linear(g.add("Mul", [x, gate], f"{name}.gelu"), f"{name}.fc2", 4 * WIDTH, WIDTH)


def image_tower(seed: int, layers: int, levels: int = 0) -> onnx.ModelProto:
    """`pixel_values` f32 [batch, 3, 224, 224] to `image_embeds` f32 [batch, 512], not of unit length."""
    g = Graph(seed, levels)
    g.constant("heads.shape", [0, TOKENS, HEADS, WIDTH // HEADS], np.int64)
    g.constant("tokens.shape", [0, TOKENS, WIDTH], np.int64)
    g.constant("scale", (WIDTH // HEADS) ** -0.5)
    g.constant("quick", 1.702)
    x = g.layer_norm(embeddings(g, "pixel_values"), "ln_pre")
    for n in range(layers):
        y = attention(g, g.layer_norm(x, f"layer{n}.ln1"), f"layer{n}.attention")
        x = g.add("Add", [x, y], f"layer{n}.mid")
        y = mlp(g, g.layer_norm(x, f"layer{n}.ln2"), f"layer{n}.mlp")
        x = g.add("Add", [x, y], f"layer{n}")
    x = g.add("Gather", [x, g.constant("zeroth", 0, np.int64)], "pooled", axis=1)
    x = g.layer_norm(x, "ln_post")
    g.add("MatMul", [x, g.normal("projection.weight", (WIDTH, DIM), WIDTH**-0.5)], "image_embeds")

    def value(name: str, *dims: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims])

    graph = helper.make_graph(
        g.nodes, "vit-b32", [value("pixel_values", 3, SIDE, SIDE)], [value("image_embeds", DIM)], g.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="is made where it is not there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=12, help="fewer for a quick trial")
    parser.add_argument("--levels", type=int, default=0, help="values that a weight can have; 0: any")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    onnx.save(image_tower(args.seed, args.layers, args.levels), args.folder / "image.onnx")
    (args.folder / "model.toml").write_text(CARD.format(seed=args.seed, layers=args.layers))
    print(args.folder)


if __name__ == "__main__":
    main()
