"""ROUGE-L (Lin 2004) as in `pycocoevalcap.rouge`: F with β = 1.2 of the longest common subsequence."""

from collections.abc import Sequence

_BETA2 = 1.2**2


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for item in first:
        before = 0
        for index, other in enumerate(second, 1):
            before, row[index] = row[index], before + 1 if item == other else max(row[index], row[index - 1])
    return row[-1]


def rouge_l(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one caption in [0, 1]; a corpus's is the mean.

    Precision and recall are each taken from the reference that is best for it, as the reference code does.

    Args:
      candidate: words of the caption; an empty one scores 0.
      references: words of each accepted caption; at least one.
    """
    lengths = [common_subsequence(candidate, reference) for reference in references]
    precision = max(lengths) / max(1, len(candidate))
    recall = max(lcs / max(1, len(words)) for lcs, words in zip(lengths, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA2) * precision * recall / (recall + _BETA2 * precision)
