"""A large image–text set prepared for training with Apache Beam.

    pip install 'smoljax[data]' apache-beam
    python -m experiments.beam LIST.jsonl --data-dir DIR [--longest 1024] [--beam direct_num_workers=8 …]

LIST.jsonl has one line a pair: {"image": PATH, "caption": TEXT}, paths as seen from its folder, or URLs of anything
that Beam's file systems open (gs://, s3://). Workers read the pictures, leave out broken ones and count them, shrink
what is larger than `--longest` on a side, and write ArrayRecord shards; nobody needs all of the list or of the pictures
at a time. What comes out is read by number, in any order, by every host its share, and needs no Beam:

    smoljax train CONFIG.py --set data.sources.0.data=tfds:pairs:train --set data.sources.0.options.data_dir=DIR

Beam's runner is named by its options: the direct one on a machine's cores is the default (`direct_num_workers=0` takes
all), `runner=DataflowRunner project=… region=… temp_location=gs://…` is Google's.
"""

import argparse
from pathlib import Path

import tensorflow_datasets as tfds

from experiments.beam.pairs import Pairs


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments.beam", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("list", type=Path, metavar="LIST.jsonl")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--longest", type=int, default=1024, metavar="PIXELS")
    parser.add_argument("--beam", nargs="*", default=[], metavar="OPTION=VALUE")
    args = parser.parse_args()
    from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]

    builder = Pairs(
        listed=args.list.absolute(), longest=args.longest, data_dir=args.data_dir, file_format="array_record"
    )
    options = PipelineOptions([f"--{option}" for option in args.beam])
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(beam_options=options))
    for name, split in builder.info.splits.items():
        print(
            f"{name}: {split.num_examples} pairs in {split.num_shards} files, {split.num_bytes / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    main()
