"""Published figures of TPU chips, and the topologies that the compiler knows of.

Peak rates, memory and interconnect: Google Cloud's TPU pages ("System architecture" of each version, read 2026-11);
links
and their one-way rates, and the way to the host: "How to Scale Your Model" (Austin et al. 2025), part 2.
"""

import math
from dataclasses import dataclass

from smoljax.errors import UsageError


@dataclass(frozen=True)
class Chip:
    """One chip; rates a second, bytes.

    Attributes:
      name: of the version, as topologies begin.
      flops: bfloat16 peak of matrix products.
      hbm_bytes, hbm_rate: main memory's size and bandwidth.
      link_rate: one way, of one link.
      host_rate: to the host's memory and back, each way.
      torus: dimensions of the interconnect.
      full: chips along a dimension from which on its ends are joined (a ring; below, a line); of three dimensions none
        is unless all are so long, since joints are those of whole cubes.
      mxu: side of the matrix unit: shorter sides of a product leave part of it idle.
      clock: cycles a second.
      cores: tensor cores.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_rate: float
    link_rate: float
    host_rate: float
    torus: int
    full: int
    mxu: int
    clock: float
    cores: int

    @property
    def vector_rate(self) -> float:
        """Element operations a second: 8 × 128 lanes of four units a core."""
        return self.cores * self.clock * 8 * 128 * 4


GB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * GB, 1.228e12, 45e9, 16e9, 3, 4, 128, 1.05e9, 2),
        Chip("v5e", 197e12, 16 * GB, 0.819e12, 45e9, 16e9, 2, 16, 128, 1.5e9, 1),
        Chip("v5p", 459e12, 95 * GB, 2.765e12, 90e9, 16e9, 3, 4, 128, 1.75e9, 2),
        Chip("v6e", 918e12, 32 * GB, 1.64e12, 90e9, 32e9, 2, 16, 256, 1.75e9, 1),
    )
}


@dataclass(frozen=True)
class Topology:
    """A slice.

    Attributes:
      name: as the compiler takes it, "v5e:4x4".
      chip: its chips.
      shape: chips along each dimension.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """How many."""
        return math.prod(self.shape)

    def is_ring(self, dimension: int) -> bool:
        """Whether the ends of a dimension are joined."""
        shortest = min(self.shape) if self.chip.torus == 3 else self.shape[dimension]
        return shortest >= self.chip.full


def read_topology(text: str) -> Topology:
    """Reads "v5e:16x16".

    Raises:
      UsageError: another form, or an unknown chip.
    """
    name, _, sides = text.partition(":")
    try:
        shape = tuple(int(side) for side in sides.split("x"))
    except ValueError:
        shape = ()
    if name not in CHIPS or not shape or min(shape) < 1:
        raise UsageError(
            f"topology {text!r}: write CHIP:AxB or CHIP:AxBxC, as v5e:4x4 or v5p:4x4x4; chips: {', '.join(CHIPS)}"
        )
    return Topology(text, CHIPS[name], shape)
