"""Beginnings of prompts that were read before: their keys and values, as a tree of segments, the oldest dropped."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(eq=False)
class Segment:
    """Neighbouring tokens of some prompt, behind all that stands above them in the tree.

    Attributes:
      symbols: [n, 2] uint64 (`symbols`).
      data: their keys and values, in whatever form the caller keeps them.
      size: bytes of `data`.
      parent: the segment that it continues; None at the tree's root.
      offset: how many of the parent's tokens stand before it.
      used: when it was last asked for, in calls.
      children: what continues it, by offset and first symbol.
    """

    symbols: np.ndarray
    data: Any
    size: int
    parent: "Segment | None"
    offset: int = 0
    used: int = 0
    children: "dict[tuple[int, bytes], Segment]" = field(default_factory=dict, repr=False)


class PrefixCache:
    """A tree of segments of at most `limit` bytes, the least recently used leaf being dropped first.

    What two prompts have in common is kept once, to the very token: a segment may be continued from any of its tokens
    (as in the radix tree of SGLang, Zheng et al. 2024, without splitting).
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size, self._clock = limit, 0, 0
        self._segments: list[Segment] = []
        self._root = Segment(np.zeros((0, 2), np.uint64), None, 0, None)

    def __len__(self) -> int:
        return len(self._segments)

    def find(self, symbols: np.ndarray) -> list[tuple[Segment, int]]:
        """The longest known beginning of `symbols` [n, 2]: segments in order, and how many tokens of each."""
        self._clock += 1
        node, at, place = self._root, 0, 0
        chain: list[tuple[Segment, int]] = []
        while place < len(symbols):
            found = node.children.get((at, symbols[place].tobytes()))
            if found is None:
                break
            node, at = found, _common(found.symbols, symbols[place:])
            node.used = self._clock
            chain.append((node, at))
            place += at
        return chain

    def add(
        self, chain: list[tuple[Segment, int]], symbols: np.ndarray, data: Any, size: int
    ) -> list[tuple[Segment, int]] | None:
        """Keeps `symbols` [n, 2] with their `data` behind a chain of `find` or `add`, and gives the longer chain.

        None where `size` alone is beyond the limit: nothing can be kept behind it either.
        """
        if size > self.limit:
            return None
        parent, offset = chain[-1] if chain else (self._root, 0)
        self._clock += 1
        new = Segment(symbols, data, size, parent, offset, self._clock)
        parent.children[offset, symbols[0].tobytes()] = new
        self._segments.append(new)
        self.size += size
        for segment, _ in chain:
            segment.used = self._clock
        while self.size > self.limit:
            leaves = (segment for segment in self._segments if not segment.children and segment is not new)
            oldest = min(leaves, key=lambda segment: segment.used, default=None)
            if oldest is None:  # nothing but what this one stands on
                self._drop(new)
                return None
            self._drop(oldest)
        return [*chain, (new, len(symbols))]

    def clear(self) -> None:
        """Forgets everything: the weights have changed."""
        self._segments, self.size = [], 0
        self._root.children.clear()

    def _drop(self, segment: Segment) -> None:
        assert segment.parent is not None
        del segment.parent.children[segment.offset, segment.symbols[0].tobytes()]
        self._segments.remove(segment)
        self.size -= segment.size


def symbols(ids: np.ndarray, places: np.ndarray, per_tile: int, tiles: list[bytes]) -> np.ndarray:
    """What a prompt's tokens are told apart by, [n, 2] uint64: an id, or the picture that an image token stands for.

    Args:
      ids: [n] int32.
      places: [n] bool, image tokens.
      per_tile: Q, image tokens of one tile.
      tiles: of each tile in order its `tile_digest`.
    """
    found = np.zeros((len(ids), 2), np.uint64)
    found[:, 0] = ids
    if tiles:
        digests = np.frombuffer(b"".join(tiles), np.uint64).reshape(-1, 2)
        found[places] = np.repeat(digests, per_tile, axis=0)
    return found


def tile_digest(tiles: Mapping[str, np.ndarray], tile: int) -> bytes:
    """16 bytes that tell a tile from all others, and from words: a hash of its pixels and of their mask.

    Args:
      tiles: `pixel_values` [1, I, C, h, w], and `pixel_attention_mask` [1, I, h, w] where there is one.
      tile: which of the I.
    """
    seen = hashlib.blake2b(np.ascontiguousarray(tiles["pixel_values"][0, tile]).tobytes(), digest_size=16)
    if "pixel_attention_mask" in tiles:
        seen.update(np.packbits(tiles["pixel_attention_mask"][0, tile]).tobytes())
    found = np.frombuffer(seen.digest(), np.uint64).copy()
    found[1] |= np.uint64(1)  # a word has 0 there
    return found.tobytes()


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many rows two arrays have in common from their start on."""
    length = min(len(one), len(other))
    differs = (one[:length] != other[:length]).any(axis=1)
    return int(differs.argmax()) if differs.any() else length
