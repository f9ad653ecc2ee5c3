"""Optimised HLO as text → computations, instructions and shapes. Reads what XLA prints for compiled TPU programs."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4,
    "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "c64": 8, "s4": 0.5, "u4": 0.5,
}  # fmt: skip
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_TILE = re.compile(r"T\((\d+)(?:,(\d+))?\)")
_SPACE = re.compile(r"S\((\d+)\)")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation|called_computations|branch_computations)="
    r"(?:\{([^}]*)\}|%?([\w.-]+))"
)


@dataclass(frozen=True)
class Shape:
    """One array.

    Attributes:
      dtype: as XLA names it.
      dims: of the logical array.
      layout: what stands in the braces: order of dimensions, tiles, memory space.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @cached_property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @cached_property
    def in_hbm(self) -> bool:
        """Whether it lies in the main memory, not on the chip."""
        space = _SPACE.search(self.layout)
        return space is None or space.group(1) == "0"

    @cached_property
    def in_host(self) -> bool:
        """Whether it lies in the host's memory."""
        space = _SPACE.search(self.layout)
        return space is not None and space.group(1) == "5"

    @cached_property
    def bytes(self) -> float:
        """What it takes in memory: the two fastest dimensions fill whole tiles."""
        unit = BYTES.get(self.dtype, 0)
        tile = _TILE.search(self.layout)
        if not tile or not self.dims:
            return self.size * unit
        order = [int(number) for number in re.findall(r"\d+", self.layout.split(":")[0])]
        dims = list(self.dims)
        sizes = [int(number) for number in tile.groups() if number]
        for dim, to in zip(order, reversed(sizes), strict=False):
            dims[dim] = -(-dims[dim] // to) * to
        return math.prod(dims) * unit


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: as printed.
      shapes: of the result, all parts of a tuple in order.
      operands: names.
      rest: what follows the operands.
      literal: what stands between the parentheses.
      root: whether it is the computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str
    literal: str
    root: bool

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls."""
        found: list[str] = []
        for many, one in _CALLED.findall(self.rest):
            found += [item.strip().lstrip("%") for item in many.split(",")] if many else [one]
        return tuple(found)

    def attribute(self, name: str) -> str | None:
        """The value of `name=…` up to the next comma outside of brackets."""
        start = self.rest.find(f"{name}=")
        if start < 0:
            return None
        text = self.rest[start + len(name) + 1 :]
        return text[: _end(text)]

    @cached_property
    def target(self) -> str:
        """Of a custom call."""
        return (self.attribute("custom_call_target") or "").strip('"')

    @cached_property
    def origin(self) -> str:
        """The operation of the traced program that it stems from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found.group(1) if found else ""


@dataclass
class Computation:
    """A list of instructions, in the order of the schedule."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Name → instruction."""
        return {item.name: item for item in self.instructions}

    @cached_property
    def root(self) -> Instruction:
        """The one whose result is the computation's."""
        return next((item for item in self.instructions if item.root), self.instructions[-1])

    @cached_property
    def parameters(self) -> list[Instruction]:
        """In the order of their numbers."""
        found = [item for item in self.instructions if item.opcode == "parameter"]
        return sorted(found, key=lambda item: int(item.literal))

    def users(self, name: str) -> list[Instruction]:
        """Instructions that read it."""
        return self._users.get(name, [])

    @cached_property
    def _users(self) -> Mapping[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = {}
        for item in self.instructions:
            for operand in dict.fromkeys(item.operands):
                found.setdefault(operand, []).append(item)
        return found


@dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: the name of the first one.
    """

    computations: Mapping[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Reads `compiled.as_text()`.

    Raises:
      ValueError: it holds no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _whole_lines(text):
        if current is None:
            if line.endswith("{") and ("->" in line) and (line[0] == "%" or line.startswith("ENTRY")):
                name = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0].split("(")[0]
                current = computations[name] = Computation(name)
                if line.startswith("ENTRY"):
                    entry = name
            continue
        if line.startswith("}"):
            current = None
            continue
        if (found := _instruction(line)) is not None:
            current.instructions.append(found)
    if not entry:
        raise ValueError("no ENTRY computation; this is not the text of an HLO module")
    return Module(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """Lines; an instruction whose attributes hold line breaks (a kernel's metadata) as one."""
    waiting = ""
    for line in text.splitlines():
        waiting = f"{waiting} {line}" if waiting else line
        starts = line.startswith((" ", "ROOT")) and " = " in line
        if starts and line.count("{") > line.count("}"):
            continue
        if waiting is not line and waiting.count("{") > waiting.count("}"):
            continue
        yield waiting
        waiting = ""


def shapes_of(text: str) -> tuple[Shape, ...]:
    """Every array of a type, a tuple's in order."""
    return tuple(
        Shape(dtype, tuple(int(item) for item in dims.split(",") if item), layout or "")
        for dtype, dims, layout in _SHAPE.findall(text)
    )


def _instruction(line: str) -> Instruction | None:
    line = line.strip()
    root = line.startswith("ROOT ")
    line = line.removeprefix("ROOT ")
    name, equals, right = line.partition(" = ")
    if not equals:
        return None
    if right.startswith("("):
        end = _closing(right, 0) + 1
    else:
        end = right.find(" ")
    kind, right = right[:end], right[end:].strip()
    opcode, bracket, _ = right.partition("(")
    if not bracket:
        return None
    close = _closing(right, len(opcode))
    literal = right[len(opcode) + 1 : close]
    operands = tuple(re.findall(r"%([\w.-]+)", literal)) if opcode != "constant" else ()
    return Instruction(name.lstrip("%"), opcode, shapes_of(kind), operands, right[close + 1 :], literal, root)


def _closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if not depth:
                return place
    return len(text)


def _end(text: str) -> int:
    """Where an attribute's value ends."""
    depth = 0
    for place, char in enumerate(text):
        if char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
        elif char == "," and not depth:
            return place
    return len(text)


def trip_count(module: Module, caller: Computation, loop: Instruction) -> int | None:
    """How often a while loop runs: from its counter's first value, its step and its bound. None: cannot be told.

    Scans and unrolled collectives count from a constant by a constant to a constant, and say so in their condition.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known.group(1))
    condition = module.computations[callee(loop, "condition")]
    body = module.computations[callee(loop, "body")]
    initial = caller.by_name.get(loop.operands[0])
    test = condition.root
    while test.opcode in ("fusion", "copy", "bitcast", "convert") and len(test.operands) >= 1:
        if test.opcode != "fusion":
            test = condition.by_name[test.operands[0]]
            continue
        inner = module.computations[test.called[0]]
        outer = [condition.by_name[name] for name in test.operands]
        return _count_fused(module, caller, initial, body, inner, outer)
    if test.opcode != "compare" or "direction=LT" not in test.rest:
        return None
    left, right = (condition.by_name[name] for name in test.operands)
    return _count(module, caller, initial, body, left, right)


def _count_fused(
    module: Module,
    caller: Computation,
    initial: Instruction | None,
    body: Computation,
    inner: Computation,
    outer: list,
) -> int | None:
    test = inner.root
    if test.opcode != "compare" or "direction=LT" not in test.rest:
        return None

    def outside(name: str) -> Instruction:
        item = inner.by_name[name]
        return outer[int(item.literal)] if item.opcode == "parameter" else item

    left, right = (outside(name) for name in test.operands)
    return _count(module, caller, initial, body, left, right)


def _count(
    module: Module,
    caller: Computation,
    initial: Instruction | None,
    body: Computation,
    left: Instruction,
    right: Instruction,
) -> int | None:
    index = element(left)
    if index is None:
        return None
    first = _initial(caller, initial, index)
    bound = _constant(right)
    if bound is None and (place := element(right)) is not None:
        bound = _initial(caller, initial, place)
    if bound is None:
        return None
    step = _step(module, body, index)
    return max(0, -(-(bound - (first or 0)) // step))


def callee(loop: Instruction, what: str) -> str:
    """The name of a loop's "body" or "condition"."""
    return (loop.attribute(what) or "").lstrip("%")


def element(item: Instruction) -> int | None:
    """Which element of the loop's state an instruction reads."""
    if item.opcode != "get-tuple-element":
        return None
    return int(item.attribute("index") or 0)


def _constant(item: Instruction | None) -> int | None:
    if item is None or item.opcode != "constant" or not re.fullmatch(r"-?\d+", item.literal):
        return None
    return int(item.literal)


def _initial(caller: Computation, state: Instruction | None, index: int) -> int | None:
    """The constant that an element of the loop's state starts from."""
    if state is None or state.opcode != "tuple" or index >= len(state.operands):
        return None
    item = caller.by_name.get(state.operands[index])
    while item is not None and item.opcode in ("copy", "bitcast") and item.operands:
        item = caller.by_name.get(item.operands[0])
    return _constant(item)


def _step(module: Module, body: Computation, index: int) -> int:
    """By how much the body moves an element of its state; 1 where it cannot be told."""
    root = body.root
    if root.opcode != "tuple" or index >= len(root.operands):
        return 1
    item = body.by_name.get(root.operands[index])
    while item is not None and item.opcode in ("copy", "bitcast") and item.operands:
        item = body.by_name.get(item.operands[0])
    if item is None or item.opcode != "add":
        return 1
    found = [_constant(body.by_name.get(name)) for name in item.operands]
    return next((value for value in found if value), 1)
