"""A compiled step played through: one stream of computation, one of memory transfers, the links beside them.

The program is scheduled, so its order is known: what the compiler starts early and waits for late overlaps with what
stands between.
"""

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field

from smoljax.plan.chips import Chip
from smoljax.plan.cost import TRANSFERS, Cost, cost_of, is_collective
from smoljax.plan.hlo import Computation, Instruction, Module, callee, trip_count
from smoljax.plan.network import Exchange, Network


@dataclass(frozen=True)
class Rates:
    """What part of its published rates a chip reaches; 1 is the roofline itself.

    Attributes:
      matrix: of the matrix units.
      vector: of the vector units.
      memory: of main memory.
      links: of the interconnect.
    """

    matrix: float = 1.0
    vector: float = 1.0
    memory: float = 1.0
    links: float = 1.0


@dataclass
class Play:
    """What was added up over a program; seconds and per-chip amounts of one run of it.

    Attributes:
      seconds: predicted, with the overlap that the schedule has.
      busy: computation alone, each instruction the slowest of products, element operations and memory.
      waiting: of `seconds`, those that the computation stood still for links or transfers.
      cost: of all instructions.
      matrix, vector, memory, host: seconds that products, element operations, main memory and transfers to and from the
        host would take by themselves.
      exchanges: (kind, axes) → number, bytes, seconds on the links.
      unknown: loops whose length could not be told; counted once.
    """

    seconds: float = 0.0
    busy: float = 0.0
    waiting: float = 0.0
    cost: Cost = field(default_factory=Cost)
    matrix: float = 0.0
    vector: float = 0.0
    memory: float = 0.0
    host: float = 0.0
    exchanges: dict[tuple[str, str], list[float]] = field(
        default_factory=lambda: defaultdict(lambda: [0.0, 0.0, 0.0])
    )
    unknown: list[str] = field(default_factory=list)

    def add(self, other: "Play", times: float = 1.0) -> None:
        """Adds another run, so many times."""
        for name in ("seconds", "busy", "waiting", "matrix", "vector", "memory", "host"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        self.cost = self.cost + other.cost * times
        for key, values in other.exchanges.items():
            self.exchanges[key] = [a + times * b for a, b in zip(self.exchanges[key], values, strict=True)]
        self.unknown += [name for name in other.unknown if name not in self.unknown]

    @property
    def link_seconds(self) -> float:
        """All collectives by themselves."""
        return sum(values[2] for values in self.exchanges.values())


class Player:
    """Plays computations of one module on one chip of a network."""

    def __init__(self, module: Module, network: Network, rates: Rates | None = None) -> None:
        self.module, self.network, self.rates = module, network, rates or Rates()
        self._played: dict[str, Play] = {}

    def play(self, name: str | None = None) -> Play:
        """A computation from its first instruction to its last, the entry by default."""
        name = name or self.module.entry
        if name not in self._played:
            self._played[name] = self._play(self.module.computations[name])
        return self._played[name]

    def _play(self, computation: Computation) -> Play:
        total, clock, transfers, host = Play(), 0.0, 0.0, 0.0
        lanes: dict[str | None, float] = defaultdict(float, {None: 0.0})
        ready: dict[str, float] = {}
        for item in computation.instructions:
            ends = _ends(self.module, item)
            pending = max((ready[name] for name in item.operands if name in ready), default=None)
            if ends and pending is not None and pending > clock:
                total.waiting += pending - clock
                clock = pending
            inner = self._inner(computation, item)
            if inner is not None:
                times, part = inner
                total.add(part, times)
                clock += times * part.seconds
                continue
            found = self._exchange(computation, item)
            cost = cost_of(self.module, computation, item, self.network.topology.chip.mxu)
            if found is not None:
                exchange, starts = found
                seconds = exchange.seconds / self.rates.links
                entry = total.exchanges[exchange.kind, exchange.axes]
                total.exchanges[exchange.kind, exchange.axes] = [
                    entry[0] + 1, entry[1] + exchange.bytes, entry[2] + seconds
                ]  # fmt: skip
                # Permutes go over links of their own, each way round; everything else takes them all.
                before = (
                    max(lanes.values()) if exchange.lane is None else max(lanes[None], lanes[exchange.lane])
                )
                end = lanes[exchange.lane] = max(before, clock) + seconds
                if starts:
                    ready[item.name] = end
                else:
                    total.waiting += end - clock
                    clock = end
                if item.opcode != "fusion":
                    continue
            elif pending is not None and not ends:
                ready[item.name] = pending  # a pair's state, passed on
            if item.opcode in TRANSFERS:
                if any(shape.in_host for shape in item.shapes):
                    seconds = cost.bytes / self.network.topology.chip.host_rate
                    host = max(host, clock) + seconds
                    ready[item.name] = host
                    total.host += seconds
                    continue
                seconds = cost.bytes / self._memory
                transfers = max(transfers, clock) + seconds
                ready[item.name] = transfers
                total.cost, total.memory = total.cost + cost, total.memory + seconds
                continue
            parts = self._parts(cost)
            busy = max(parts)
            clock += busy
            total.busy += busy
            total.matrix, total.vector, total.memory = (
                a + b for a, b in zip((total.matrix, total.vector, total.memory), parts, strict=True)
            )
            total.cost = total.cost + cost
        total.seconds = clock
        return total

    @property
    def _memory(self) -> float:
        return self.network.topology.chip.hbm_rate * self.rates.memory

    def _parts(self, cost: Cost) -> tuple[float, float, float]:
        chip: Chip = self.network.topology.chip
        return (
            cost.padded / (chip.flops * self.rates.matrix),
            cost.elements / (chip.vector_rate * self.rates.vector),
            cost.bytes / self._memory,
        )

    def _inner(self, computation: Computation, item: Instruction) -> tuple[float, Play] | None:
        """Loops so often, of branches the longest, calls once."""
        if item.opcode == "while":
            times = trip_count(self.module, computation, item)
            part = self.play(callee(item, "body"))
            if times is None:
                part = dataclasses.replace(part, unknown=[*part.unknown, item.name])
            return float(1 if times is None else times), part
        if item.opcode == "conditional":
            return 1.0, max((self.play(name) for name in item.called), key=lambda part: part.seconds)
        if item.opcode in ("call", "async-start"):
            return 1.0, self.play(item.called[0])
        return None

    def _exchange(self, computation: Computation, item: Instruction) -> tuple[Exchange, bool] | None:
        """The collective that an instruction is or begins, and whether it goes on behind what follows."""
        if is_collective(item.opcode):
            return self.network.exchange(computation, item), item.opcode.endswith("-start")
        if item.opcode != "fusion":
            return None
        inner = self.module.computations[item.called[0]]
        own = [part for part in inner.instructions if is_collective(part.opcode)]
        targets = {part.target for part in inner.instructions if part.opcode == "custom-call"}
        if not own or "AsyncCollectiveDone" in targets:
            return None
        if "AsyncCollectiveStart" in targets:
            return self.network.exchange(inner, own[0]), True
        if _continues(inner):
            return None
        return self.network.exchange(inner, own[0]), False


def _ends(module: Module, item: Instruction) -> bool:
    """Whether an instruction waits for what another one began."""
    if item.opcode.endswith("-done"):
        return True
    if item.opcode != "fusion":
        return False
    inner = module.computations[item.called[0]]
    return any(part.target == "AsyncCollectiveDone" for part in inner.instructions)


def _continues(inner: Computation) -> bool:
    """Whether a fusion computes beside a collective that another one began: it gets that one's flags as operands."""
    flags = [
        part
        for part in inner.parameters
        if part.shapes and part.shapes[0].dtype == "u32" and not part.shapes[0].dims
    ]
    return len(flags) >= 4


def exchanges_table(play: Play) -> list[dict[str, float | str]]:
    """Kind, axes, number, bytes and seconds of each kind of collective, the dearest first."""
    rows: list[dict[str, float | str]] = [
        {"kind": kind, "axes": axes, "number": number, "bytes": size, "seconds": seconds}
        for (kind, axes), (number, size, seconds) in play.exchanges.items()
    ]
    return sorted(rows, key=lambda row: -float(row["seconds"]))
