"""What one instruction of compiled HLO costs a chip: products, element operations, memory traffic, communication."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smoljax.plan.hlo import Computation, Instruction, Module, Shape

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Begun here, awaited at their "-done": between memories, or a slice of one.
TRANSFERS = ("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start")
# Nothing is computed or moved by these.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id",
    "replica-id", "broadcast", "reshape", "opt-barrier", "while", "conditional", "call",
}  # fmt: skip
_DEAR = {
    "exponential",
    "log",
    "tanh",
    "power",
    "divide",
    "sqrt",
    "rsqrt",
    "sine",
    "cosine",
    "logistic",
    "expm1",
}
_CHEAP = {
    "add", "subtract", "multiply", "maximum", "minimum", "select", "compare", "and", "or", "not", "negate", "abs",
    "convert", "clamp", "reduce", "floor", "sign", "is-finite", "shift-left", "shift-right-logical", "xor",
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Of one instruction, on one chip.

    Attributes:
      flops: of matrix products, a multiply-add two.
      padded: the same where each product's sides fill whole matrix units.
      elements: element operations, a transcendental one counting eight.
      bytes: read from and written to main memory.
    """

    flops: float = 0.0
    padded: float = 0.0
    elements: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, times: float) -> "Cost":
        return Cost(*(value * times for value in vars(self).values()))


def cost_of(module: Module, within: Computation, item: Instruction, mxu: int) -> Cost:
    """The cost of an instruction that runs by itself; what it calls in loops and branches is not in it.

    Args:
      module: for the computations that fusions call.
      within: its computation, where its operands are.
      item: the instruction.
      mxu: side of the matrix unit.
    """
    if item.opcode in FREE or item.opcode.endswith("-done"):
        return Cost()
    if item.opcode == "fusion":
        inner = module.computations[item.called[0]]
        inside = _inside(module, inner, mxu)
        return Cost(inside.flops, inside.padded, inside.elements, _fusion_bytes(module, within, item, inner))
    traffic = _traffic(within, item)
    if item.opcode == "custom-call":
        return _kernel(within, item, mxu) + Cost(bytes=traffic if item.target == "tpu_custom_call" else 0)
    if item.opcode in ("convolution", "dot"):
        flops, padded = _product(within, item, mxu)
        return Cost(flops, padded, 0.0, traffic)
    return Cost(elements=_elements(within, item), bytes=traffic)


def is_collective(opcode: str) -> bool:
    """Whether chips speak to each other in it (its start, if it has two parts)."""
    return opcode.removesuffix("-start") in COLLECTIVES


def _inside(module: Module, inner: Computation, mxu: int) -> Cost:
    """Products and element operations of a fused computation."""
    total = Cost()
    for item in inner.instructions:
        if item.opcode == "fusion":
            total += _inside(module, module.computations[item.called[0]], mxu)
        elif item.opcode in ("convolution", "dot"):
            flops, padded = _product(inner, item, mxu)
            total += Cost(flops, padded)
        else:
            total += Cost(elements=_elements(inner, item))
    return total


def _elements(within: Computation, item: Instruction) -> float:
    weight = 8 if item.opcode in _DEAR else 1 if item.opcode in _CHEAP else 0
    if not weight:
        return 0.0
    if item.opcode == "reduce":
        first = within.by_name.get(item.operands[0]) if item.operands else None
        return float(first.shapes[0].size) if first is not None and first.shapes else 0.0
    return float(weight * item.shapes[0].size) if item.shapes else 0.0


def _product(within: Computation, item: Instruction, mxu: int) -> tuple[float, float]:
    """FLOPs of a dot or of the convolution that TPU programs write one as; and with sides padded to the unit."""
    left, right = (within.by_name[name].shapes[0] for name in item.operands[:2])
    out = item.shapes[0]
    if item.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", item.rest)
        depth = math.prod(left.dims[int(d)] for d in contracted.group(1).split(",") if d) if contracted else 1
        return 2.0 * out.size * depth, 2.0 * out.size * depth
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", item.rest)
    if not labels:
        return 0.0, 0.0
    first, second, third = labels.groups()
    spatial = [label for label in second if label.isdigit()]
    groups = int(item.attribute("feature_group_count") or 1) * int(item.attribute("batch_group_count") or 1)
    rows = out.dims[third.index("b")]
    columns, depth = right.dims[second.index("o")], right.dims[second.index("i")]
    pairs = 1.0
    window = _window(item.attribute("window") or "", len(spatial))
    outer = inner = 1.0  # spatial dimensions act as rows, or as depth
    for label in spatial:
        number = int(label)
        n_in, n_out = left.dims[first.index(label)], out.dims[third.index(label)]
        valid = _valid_pairs(n_in, n_out, {key: values[number] for key, values in window.items()})
        pairs *= valid
        outer, inner = outer * n_out, inner * valid / max(n_out, 1)
    flops = 2.0 * rows * columns * depth * pairs / groups
    if not flops:
        return 0.0, 0.0
    # The unit holds a depth × columns tile; rows stream through in eights.
    waste = 1.0
    for side in (columns, depth * max(inner, 1.0)):
        waste *= math.ceil(side / mxu) * mxu / side
    streamed = rows * outer
    waste = min(waste, _other_way(streamed, columns, depth * max(inner, 1.0), mxu))
    return flops, flops * waste


def _other_way(rows: float, columns: float, depth: float, mxu: int) -> float:
    """The waste where rows are held and columns stream."""
    waste = 1.0
    for side in (rows, depth):
        waste *= math.ceil(side / mxu) * mxu / max(side, 1.0)
    return waste * math.ceil(columns / 8) * 8 / max(columns, 1.0)


def _window(text: str, count: int) -> dict[str, list[tuple[int, ...]]]:
    found = dict(re.findall(r"(\w+)=([\w\-x_]+)", text))

    def split(key: str, default: tuple[int, ...]) -> list[tuple[int, ...]]:
        if key not in found:
            return [default] * count
        return [tuple(int(value) for value in part.split("_")) for part in found[key].split("x")]

    return {
        "size": split("size", (1,)),
        "stride": split("stride", (1,)),
        "pad": split("pad", (0, 0)),
        "lhs": split("lhs_dilate", (1,)),
        "rhs": split("rhs_dilate", (1,)),
    }


def _valid_pairs(n_in: int, n_out: int, window: dict[str, tuple[int, ...]]) -> float:
    """How many (output, kernel) places of one dimension read an element and not padding or a gap of dilation."""
    size, stride, low = window["size"][0], window["stride"][0], window["pad"][0]
    spread, reach = window["lhs"][0], window["rhs"][0]
    if n_out * size > 4_000_000:
        return float(n_out * min(size, n_in))
    place = np.arange(n_out)[:, None] * stride + np.arange(size)[None] * reach - low
    inside = (place >= 0) & (place <= (n_in - 1) * spread) & (place % spread == 0)
    return float(inside.sum())


def _kernel(within: Computation, item: Instruction, mxu: int) -> Cost:
    """A Pallas kernel of attention, by its name and its operands; others cost their traffic alone."""
    if item.target != "tpu_custom_call" or "splash" not in item.name:
        return Cost()
    operands = [within.by_name[name].shapes[0] for name in item.operands if within.by_name[name].shapes]
    wide = [shape for shape in operands if shape.dtype in ("bf16", "f32") and len(shape.dims) >= 3]
    q, k = wide[0].dims, wide[1].dims
    # Queries and keys may lie with tokens or with heads' numbers last; results always end in the heads' numbers.
    H = next(shape.dims[-1] for shape in item.shapes if len(shape.dims) == len(q))
    number, T, keys = math.prod(q[:-2]), q[-2] * q[-1] // H, k[-2] * k[-1] // H
    visited = _visited(operands, T, keys)
    products = 2 if "fwd" in item.name else 3 if "_dq" in item.name else 4
    flops = products * 2.0 * number * T * keys * H * visited
    half = math.ceil(H / mxu) * mxu / H
    scores = number * T * keys * visited
    # Softmax and its backward pass: a maximum, a difference, an exponential (8), a sum, products, masks.
    return Cost(flops, flops * half, scores * 16)


def _visited(operands: Sequence[Shape], T: int, S: int) -> float:
    """The share of blocks that the kernel visits: all, or of a causal one those on and below the diagonal.

    Segment numbers come as two arrays of integers; a causal kernel takes a third one (alone: a first one), the queries'
    places.
    """
    tables = [shape for shape in operands if shape.dtype in ("s8", "s16", "s32") and len(shape.dims) == 3]
    numbers = [shape for shape in operands if shape.dtype == "s32" and len(shape.dims) == 2]
    if not tables or len(numbers) % 2 == 0 or T != S:
        return 1.0
    blocks = max(tables[0].dims[-2:])
    return (blocks + 1) / (2 * blocks)


def _traffic(within: Computation, item: Instruction) -> float:
    """Bytes of an instruction's arrays in main memory: each operand read once, the result written once."""
    if item.opcode in ("dynamic-slice", "slice", "gather"):
        return 2.0 * _hbm(item.shapes)
    if item.opcode in ("dynamic-update-slice", "scatter"):
        update = within.by_name.get(item.operands[1 if item.opcode != "scatter" else -1])
        return 2.0 * _hbm(update.shapes) if update is not None else 0.0
    if item.opcode in TRANSFERS:
        return _moved(within, item)
    read = sum(
        _hbm(within.by_name[name].shapes) for name in dict.fromkeys(item.operands) if name in within.by_name
    )
    return read + _hbm(item.shapes)


def _moved(within: Computation, item: Instruction) -> float:
    """A transfer between memories: as much as arrives, of an update the update."""
    if item.opcode == "dynamic-update-slice-start":
        update = within.by_name.get(item.operands[1])
        return float(sum(shape.bytes for shape in update.shapes)) if update is not None else 0.0
    arrays = [shape for shape in item.shapes if shape.dims]
    return float(min((shape.bytes for shape in arrays), default=0.0))


def _hbm(shapes: Sequence[Shape]) -> float:
    return float(sum(shape.bytes for shape in shapes if shape.in_hbm and shape.dims))


def _fusion_bytes(module: Module, within: Computation, item: Instruction, inner: Computation) -> float:
    """Of a fusion: an operand of which slices are taken counts as those, an updated one as the update."""
    total = 0.0
    root = inner.root
    outputs = [inner.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    updated: set[str] = set()
    for shape, out in zip(item.shapes, outputs, strict=False):
        while out.opcode in ("bitcast", "copy") and out.operands:
            out = inner.by_name[out.operands[0]]
        if out.opcode == "dynamic-update-slice":
            update = inner.by_name[out.operands[1]]
            total += sum(part.bytes for part in update.shapes) if shape.in_hbm else 0.0
            updated.add(_source(inner, out.operands[0]))
        elif shape.in_hbm:
            total += shape.bytes
    for name, parameter in zip(item.operands, inner.parameters, strict=False):
        outer = within.by_name.get(name)
        if outer is None or parameter.name in updated:
            continue
        size = _hbm(outer.shapes)
        if size:
            total += min(size, _read(module, inner, parameter))
    return total


def _source(inner: Computation, name: str) -> str:
    item = inner.by_name[name]
    while item.opcode in ("bitcast", "copy", "convert") and item.operands:
        item = inner.by_name[item.operands[0]]
    return item.name


def _read(module: Module, inner: Computation, parameter: Instruction) -> float:
    """How much of a parameter is read: whole, unless only slices of it are taken, here or in fusions within."""
    total = 0.0
    for user in inner.users(parameter.name):
        if user.opcode == "bitcast":
            total += _read(module, inner, user)
        elif user.opcode == "fusion":
            deeper = module.computations[user.called[0]]
            total += sum(
                _read(module, deeper, own)
                for name, own in zip(user.operands, deeper.parameters, strict=False)
                if name == parameter.name
            )
        elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == parameter.name:
            total += sum(shape.bytes for shape in user.shapes)
        else:
            return math.inf
    return total
