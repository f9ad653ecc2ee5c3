"""`python -m smoljax.data.scenes`: builds the data set, or draws a contact sheet, or counts what is in it."""

import argparse
import sys
from pathlib import Path

from smoljax.errors import SmoljaxError


def main(arguments: list[str] | None = None) -> int:
    """Parses `arguments` (default: the command line) and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m smoljax.data.scenes", description=__doc__)
    parser.add_argument("--config", default="full", help="full or tiny (default: full)")
    parser.add_argument("--data-dir", type=Path, help="TFDS folder (default: datasets/ of the smoljax cache)")
    parser.add_argument(
        "--preview", type=Path, metavar="F.png", help="only draw a contact sheet of 28 pictures"
    )
    parser.add_argument("--statistics", action="store_true", help="then print counts and the blind baseline")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.preview is not None:
            from smoljax.data.scenes.preview import contact_sheet

            contact_sheet().save(chosen.preview, optimize=True)
            return 0
        from smoljax.data.scenes.build import open_scenes

        builder = open_scenes(chosen.config, chosen.data_dir)
        print(builder.data_dir)
        if chosen.statistics:
            from smoljax.data.scenes.statistics import report

            print(report(builder))
    except SmoljaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
