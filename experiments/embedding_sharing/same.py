"""Whether two rows say the same: every number of the measurements and of the training curve, times and speeds aside.

python -m experiments.embedding_sharing.same ROW.json OTHER.json
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TIMES = {"seconds", "pictures_a_second", "model", "machine"}


def numbers(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its path, without what depends on the clock or the folder."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in TIMES:
                yield from numbers(value, f"{path}/{key}")
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from numbers(value, f"{path}/{place}")
    else:
        yield path, node


def differences(one: dict[str, Any], other: dict[str, Any]) -> tuple[int, list[str]]:
    """How many leaves were compared, and those that are not equal, bit for bit."""
    keys = ("measured", "curve")
    left = dict(numbers({key: one[key] for key in keys}))
    right = dict(numbers({key: other[key] for key in keys}))
    paths = sorted({*left, *right})
    # NaN, which JSON keeps, is equal to itself here.
    unequal = [
        f"{path}: {left.get(path)} and {right.get(path)}"
        for path in paths
        if repr(left.get(path)) != repr(right.get(path))
    ]
    return len(paths), unequal


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    args = parser.parse_args()
    count, unequal = differences(*(json.loads(path.read_text()) for path in (args.one, args.other)))
    print(f"{count - len(unequal)} of {count} numbers are equal, bit for bit")
    for line in unequal[:20]:
        print(f"  {line}")
    return int(bool(unequal))


if __name__ == "__main__":
    raise SystemExit(main())
