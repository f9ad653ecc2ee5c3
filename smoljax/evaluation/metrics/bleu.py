"""BLEU-4 of a corpus (Papineni et al. 2002) with the closest reference length, as in `pycocoevalcap.bleu`."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

#: What keeps a corpus without a single match from dividing by nothing; the values of the reference.
_SMALL, _TINY = 1e-9, 1e-15
ORDER = 4


def ngrams(tokens: Sequence[str], order: int = ORDER) -> Counter[tuple[str, ...]]:
    """How often each run of 1 to `order` tokens occurs."""
    return Counter(
        tuple(tokens[start : start + size])
        for size in range(1, order + 1)
        for start in range(len(tokens) - size + 1)
    )


def bleu_counts(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """What one caption adds to the corpus: [10] float64.

    Matches of 1 to 4 words (each clipped to its most frequent use in a reference), their possible numbers, the
    caption's length, and the length of the reference closest to it (the shorter one of two equally close).

    Args:
      candidate: words of the caption (`smoljax.evaluation.metrics.words.words`).
      references: words of each accepted caption; at least one.
    """
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= ngrams(reference)
    matches = np.zeros(ORDER)
    for gram, count in (ngrams(candidate) & most).items():
        matches[len(gram) - 1] += count
    length = len(candidate)
    possible = [max(0, length - size) for size in range(ORDER)]
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    return np.array([*matches, *possible, length, closest], np.float64)


def bleu(counts: np.ndarray) -> np.ndarray:
    """BLEU-4 in [0, 1] from summed counts [..., 10] → [...]: geometric mean of precisions, short captions punished."""
    matches, possible = counts[..., :ORDER], counts[..., ORDER : 2 * ORDER]
    length, reference = counts[..., 2 * ORDER], counts[..., 2 * ORDER + 1]
    score = np.exp(np.log((matches + _TINY) / (possible + _SMALL)).mean(axis=-1))
    ratio = (length + _TINY) / (reference + _SMALL)
    return score * np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
