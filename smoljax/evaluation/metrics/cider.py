"""CIDEr-D (Vedantam et al. 2015) as `pycocoevalcap.cider` computes it, which calls it "CIDEr".

It is the D variant: counts are clipped to the reference's, and a Gaussian of the length difference (σ = 6) punishes
captions that are longer or shorter. Words are not stemmed. As in that code, the length of a caption is its number of
word *pairs*, and the score is 10 times the mean over 1 to 4 words.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from smoljax.evaluation.metrics.bleu import ORDER, ngrams

_SIGMA = 6.0
_Vector = tuple[list[dict[tuple[str, ...], float]], list[float], int]


def cider_d(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
    """Scores [n] of n captions, 0 to 10; the corpus's is the mean.

    How rare a phrase is (its idf) is counted over the given references, a picture being a document: scores of
    different sets of pictures do not compare, and those of a single picture are 0.

    Args:
      candidates: words of each caption.
      references: for each of them the words of its accepted captions; at least one each.
    """
    counted = [[ngrams(reference) for reference in group] for group in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for group in counted:
        frequency.update(set().union(*group))
    total = math.log(len(counted)) if counted else 0.0

    def vector(counts: Counter[tuple[str, ...]]) -> _Vector:
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDER)]
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * (total - math.log(max(1, frequency[gram])))
        norms = [math.sqrt(sum(value * value for value in part.values())) for part in weights]
        return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)

    scores = [
        10.0 * float(np.mean([_similarity(vector(ngrams(words)), vector(reference)) for reference in group]))
        for words, group in zip(candidates, counted, strict=True)
    ]
    return np.array(scores, np.float64)


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Mean over phrase lengths of the clipped cosine, times the punishment of the length difference."""
    total = 0.0
    for size in range(ORDER):
        own, other = candidate[0][size], reference[0][size]
        dot = sum(min(value, other[gram]) * other[gram] for gram, value in own.items() if gram in other)
        norm = candidate[1][size] * reference[1][size]
        total += dot / norm if norm else dot
    difference = candidate[2] - reference[2]
    return total / ORDER * math.exp(-(difference**2) / (2 * _SIGMA**2))
