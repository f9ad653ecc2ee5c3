"""Image–text retrieval from pooled tokens, at any layer."""

import numpy as np

from smoljax.analysis.geometry import unit
from smoljax.evaluation.metrics.retrieval import ranks, recall_at


def pooled_retrieval(image: np.ndarray, text: np.ndarray, *, centred: bool = True) -> dict[str, float]:
    """R@1, R@5 and R@10 in both directions by cosine; row i of image [n, D] and of text [n, D] belong together.

    Args:
      image, text: mean tokens of pictures and texts.
      centred: take each modality's own centroid away first, so that the gap between them counts for nothing.
    """
    if centred:
        image, text = image - image.mean(0), text - text.mean(0)
    similarity = unit(image) @ unit(text).T
    found = {}
    for name, scores in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        places = ranks(scores)
        found |= {f"{name}_r{k}": float(recall_at(places, k).mean()) for k in (1, 5, 10)}
    return found
