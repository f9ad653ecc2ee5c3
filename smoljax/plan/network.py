"""Who speaks to whom in a collective, over which axes of the mesh, and how long it takes on the links."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from smoljax.plan.chips import Topology
from smoljax.plan.hlo import Computation, Instruction


@dataclass(frozen=True)
class Exchange:
    """One collective.

    Attributes:
      kind: "all-gather", ….
      axes: of the mesh, as "fsdp" or "data+fsdp"; "?" for groups that no axes make.
      bytes: of the whole array on a chip: the gathered result, what is reduced, what is sent.
      seconds: on the links alone.
      lane: of a permute its pairs, so that two opposite ones go beside each other; None: it takes all links.
    """

    kind: str
    axes: str
    bytes: float
    seconds: float
    lane: str | None = None


class Network:
    """The links of a topology under a mesh."""

    def __init__(self, topology: Topology, mesh: Mapping[str, int], coords: np.ndarray) -> None:
        """
        Args:
          topology: the slice.
          mesh: axis → size, in the order of the device array.
          coords: [devices, 3], the chip's place in the slice of every device in the mesh's order.
        """
        self.topology, self.mesh, self.coords = topology, dict(mesh), coords
        numbers = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
        self._groups: dict[frozenset[frozenset[int]], str] = {}
        names = [name for name, size in mesh.items() if size > 1]
        for count in range(1, len(names) + 1):
            for some in itertools.combinations(names, count):
                last = [list(mesh).index(name) for name in some]
                rest = [axis for axis in range(len(mesh)) if axis not in last]
                members = math.prod(mesh[name] for name in some)
                grouped = numbers.transpose(*rest, *last).reshape(-1, members)
                self._groups.setdefault(_key(grouped), "+".join(some))

    def exchange(self, within: Computation, item: Instruction) -> Exchange:
        """What a collective (or its start) moves, and how long that takes."""
        kind = item.opcode.removesuffix("-start")
        groups = groups_of(item, math.prod(self.mesh.values()))
        arrays = [shape for shape in item.shapes if shape.dims and shape.dtype not in ("u32",)]
        operands = [
            shape for name in item.operands if name in within.by_name for shape in within.by_name[name].shapes
        ]
        received = sum(shape.bytes for shape in arrays) if not item.opcode.endswith("-start") else 0.0
        sent = sum(shape.bytes for shape in operands)
        members = len(groups[0]) if groups else 1
        if kind == "all-gather":
            size = max(received, sent * members)
        elif kind == "collective-permute":
            size, members = sent, 2
        else:
            size = sent
        axes = self._axes(item, groups)
        lane = item.attribute("source_target_pairs")
        return Exchange(kind, axes, size, self._seconds(kind, groups, size, members), lane)

    def _axes(self, item: Instruction, groups: Sequence[Sequence[int]]) -> str:
        if item.opcode.startswith("collective-permute"):
            linked = _components(groups)
            for key, name in self._groups.items():
                if all(any(part <= group for group in key) for part in linked):
                    return name
            return "?"
        return self._groups.get(_key(groups), "?")

    def _seconds(self, kind: str, groups: Sequence[Sequence[int]], size: float, members: int) -> float:
        """Bandwidth of the links that a group's chips span, both ways round; a line has half of a ring's.

        An all-gather or reduce-scatter passes (n − 1)/n of the array, an all-reduce twice that; an all-to-all is bound
        by its narrowest cut; a permute passes the array itself, over as many links as the partner is away.
        """
        chip = self.topology.chip
        if not groups or members < 2:
            return 0.0
        if kind == "collective-permute":
            far = max((self._distance(*pair) for pair in groups if len(pair) == 2), default=0)
            return size * max(far, 0) / chip.link_rate
        spans = self._spans(groups[0])
        links = sum(2 if ring else 1 for ring in spans) or 2
        rate = links * chip.link_rate
        part = (members - 1) / members
        if kind == "all-reduce":
            return 2 * size * part / rate
        if kind == "all-to-all":
            return size * self._bisection(groups[0]) / chip.link_rate
        return size * part / rate

    def _bisection(self, group: Sequence[int]) -> float:
        """Of an all-to-all, the share of a chip's array that each link in the middle carries, at the narrowest cut.

        Half of what the chips on one side of a cut hold crosses it; along a dimension of n chips each line of chips has
        one link there, on a ring two: n/4 or n/8 of an array a link.
        """
        sides = [(d, side) for d, side in enumerate(self._sides(group)) if side > 1]
        rings = self._spans(group)
        return max(
            (side / (8 if ring else 4) for (_, side), ring in zip(sides, rings, strict=True)), default=1.0
        )

    def _spans(self, group: Sequence[int]) -> list[bool]:
        """For each dimension of the torus that a group extends along: whether it is a closed ring there."""
        sides = self._sides(group)
        return [
            side >= self.topology.shape[d] and self.topology.is_ring(d)
            for d, side in enumerate(sides)
            if side > 1
        ]

    def _sides(self, group: Sequence[int]) -> list[int]:
        places = self.coords[list(group)]
        return [len(set(places[:, d].tolist())) for d in range(len(self.topology.shape))]

    def _distance(self, one: int, other: int) -> int:
        total = 0
        for d, side in enumerate(self.topology.shape):
            way = abs(int(self.coords[one][d]) - int(self.coords[other][d]))
            total += min(way, side - way) if self.topology.is_ring(d) else way
        return total


def groups_of(item: Instruction, devices: int) -> list[list[int]]:
    """The groups of a collective, by device number; of a permute its pairs.

    XLA writes them as lists, as `[groups,members]<=[dims]T(order)`, or by axes of a mesh of its own.
    """
    pairs = item.attribute("source_target_pairs")
    if pairs is not None:
        return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs)]
    text = item.attribute("replica_groups") or ""
    if text.startswith("mesh["):
        sizes = [int(size) for size in re.findall(r"'[\w.]+'=(\d+)", text)]
        names = re.findall(r"'([\w.]+)'=\d+", text)
        chosen = re.findall(r"'([\w.]+)'", text[text.index("]") :])
        order = re.search(r"device_ids=\[([\d,]*)\]", text)
        numbers = np.arange(devices) if not order else np.array([int(n) for n in order.group(1).split(",")])
        numbers = numbers.reshape(sizes)
        last = [names.index(name) for name in chosen]
        rest = [axis for axis in range(len(sizes)) if axis not in last]
        members = math.prod(sizes[axis] for axis in last)
        return numbers.transpose(*rest, *last).reshape(-1, members).tolist()
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, dims, order = ([int(n) for n in part.split(",")] if part else None for part in iota.groups())
        assert shape is not None
        assert dims is not None
        numbers = np.arange(math.prod(dims)).reshape(dims)
        if order:
            numbers = numbers.transpose(order)
        return numbers.reshape(shape).tolist()
    found = [[int(n) for n in part.split(",") if n] for part in re.findall(r"\{([\d,]+)\}", text)]
    return found or [list(range(devices))]


def _key(groups: Sequence[Sequence[int]] | np.ndarray) -> frozenset[frozenset[int]]:
    return frozenset(frozenset(int(n) for n in group) for group in groups)


def _components(pairs: Sequence[Sequence[int]]) -> list[frozenset[int]]:
    """Devices that pairs link, directly or not."""
    parent: dict[int, int] = {}

    def find(node: int) -> int:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for a, b in pairs:
        parent[find(a)] = find(b)
    found: dict[int, set[int]] = {}
    for node in parent:
        found.setdefault(find(node), set()).add(node)
    return [frozenset(part) for part in found.values()]
