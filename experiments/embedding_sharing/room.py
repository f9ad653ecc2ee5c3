"""How many conversations a picture find room in each variant's rows: whether all are asked the same questions.

python -m experiments.embedding_sharing.room [--variants linear contrastive …] [--batches 100]
"""

import argparse
from itertools import islice

import numpy as np
from tqdm import tqdm

from experiments.embedding_sharing.dense import BASE
from experiments.embedding_sharing.scenes import data
from experiments.embedding_sharing.variants import Variant, known
from experiments.scenes.dense import PROCESSOR
from smoljax.data.pipeline import make_iterator
from smoljax.processing.processor import Processor


def conversations(variant: Variant, batches: int, seed: int = 0) -> tuple[float, int]:
    """Conversations of which something is learned, a picture, in the mean over the first batches; and pictures."""
    tokens = variant.architecture(BASE).image_seq_len
    processor = Processor.from_folder(PROCESSOR).with_settings(image_seq_len=tokens)
    stream = islice(make_iterator(data("train", variant), processor, seed), batches)
    counted = [
        len(np.unique(branches[learned]))
        for batch in tqdm(stream, variant.name, total=batches, unit="batch", leave=False, disable=None)
        for branches, learned in zip(batch["branch_ids"], batch["loss_mask"], strict=True)
    ]
    return float(np.mean(counted)), len(counted)


def main() -> None:
    variants = known()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(variants),
        default=["linear", "shuffle4", "contrastive"],
        metavar="NAME",
        help="the three layouts of rows there are, by default",
    )
    parser.add_argument("--batches", type=int, default=100)
    args = parser.parse_args()
    for name in args.variants:
        mean, pictures = conversations(variants[name], args.batches)
        print(f"{name}: {mean:.2f} conversations a picture ({pictures} pictures)")


if __name__ == "__main__":
    main()
