"""What a linear map can read off vectors: multinomial ridge regression, on vectors it was not fitted to."""

import numpy as np


def probe_accuracy(
    x: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, ridge: float = 1e-2, seed: int = 0
) -> dict[str, float]:
    """Fits a linear classifier on half of the groups and tests it on the other half.

    Args:
      x: [n, D].
      labels: [n] classes.
      groups: [n]; vectors of one group (one picture) are never on both sides.
      ridge: on features scaled to unit variance, times the number of vectors.
      seed: of the halves.

    Returns:
      `accuracy`; `majority`, that of always naming the commonest class of the fitting half; `n` tested.
    """
    rng = np.random.default_rng(seed)
    names = np.unique(groups)
    fitted = np.isin(groups, rng.permutation(names)[: len(names) // 2])
    fit_x, fit_y, test_x, test_y = x[fitted], labels[fitted], x[~fitted], labels[~fitted]
    if not len(fit_x) or not len(test_x):
        raise ValueError("a probe needs vectors of at least two groups")
    classes, place, count = np.unique(fit_y, return_inverse=True, return_counts=True)
    mean, scale = fit_x.mean(0), fit_x.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)  # a dimension that never varies says nothing
    a = np.concatenate([(fit_x - mean) / scale, np.ones((len(fit_x), 1))], axis=1).astype(np.float64)
    target = np.eye(len(classes))[place] - count / len(fit_y)
    penalty = np.eye(a.shape[1]) * ridge * len(a)
    penalty[-1, -1] = 1e-9
    weights = np.linalg.solve(a.T @ a + penalty, a.T @ target)
    b = np.concatenate([(test_x - mean) / scale, np.ones((len(test_x), 1))], axis=1)
    guess = classes[(b @ weights + count / len(fit_y)).argmax(-1)]
    return {
        "accuracy": float((guess == test_y).mean()),
        "majority": float((test_y == classes[count.argmax()]).mean()),
        "n": len(test_y),
    }
