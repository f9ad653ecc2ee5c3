"""The data of the PyPI package `easy-vqa` as .jsonl files in the cache, one record a picture.

    python -m experiments.easy_vqa.prepare

easy-vqa 1.0 (Victor Zhou 2019, MIT licence, github.com/vzhou842/easy-VQA): pictures of 64×64 pixels with one coloured
shape on a light ground; 4,000 for training with 38,575 questions, 1,000 for testing with 9,673, 13 answers. The
package's pictures stay where it is installed; nothing of them is copied. The last 250 training pictures are kept for
validation.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from smoljax.data.records import ask
from smoljax.errors import SmoljaxError
from smoljax.paths import smoljax_cache

HELD_OUT = 250
QUESTIONS = {"train": 38_575, "test": 9_673}
SPLITS = ("train", "validation", "test")
# What a question asks for; negated ones ("is there not a circle?") apart, as they turn the answer round.
_KINDS = (
    ("absence", re.compile(r"\b(not|no)\b")),
    ("existence", re.compile(r"^(is|does) ")),
    ("colour", re.compile(r"\bcolor\b")),
    ("shape", re.compile(r"^what (shape\b|is the \w+ shape\?)")),
)


def folder() -> Path:
    """Where the files go."""
    return smoljax_cache() / "datasets" / "easy_vqa"


def path_of(split: str) -> Path:
    """The file of "train", "validation" or "test"."""
    return folder() / f"{split}.jsonl"


def kind_of(question: str) -> str:
    """existence, absence, colour or shape; SmoljaxError for a question of no known form."""
    for kind, pattern in _KINDS:
        if pattern.search(question):
            return kind
    raise SmoljaxError(f"easy-vqa: a question of no known form: {question!r}")


def prepare() -> dict[str, dict[str, int]]:
    """Writes the three files, the same bytes each time.

    Returns:
      Split → `pictures` and `questions`.

    Raises:
      SmoljaxError: the package is missing, or not the version whose numbers are published.
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise SmoljaxError("this recipe needs easy-vqa: pip install 'smoljax[experiments]'") from error
    train = _records("train", easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths())
    test = _records("test", easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths())
    parts = {"train": train[:-HELD_OUT], "validation": train[-HELD_OUT:], "test": test}
    folder().mkdir(parents=True, exist_ok=True)
    for split, records in parts.items():
        aside = path_of(split).with_suffix(".part")
        aside.write_text("".join(json.dumps(record) + "\n" for record in records))
        aside.replace(path_of(split))
    return {
        split: {
            "pictures": len(records),
            "questions": sum(len(record["conversations"]) for record in records),
        }
        for split, records in parts.items()
    }


def _records(
    split: str, asked: tuple[list[str], list[str], list[int]], pictures: dict[int, str]
) -> list[dict[str, Any]]:
    """One record a picture, in the order of their numbers."""
    if len(asked[0]) != QUESTIONS[split]:
        raise SmoljaxError(
            f"easy-vqa: {len(asked[0])} {split} questions, but version 1.0 has {QUESTIONS[split]}; "
            "pip install easy-vqa==1.0"
        )
    talks: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, number in zip(*asked, strict=True):
        talks[number].append((question, answer))
    return [
        {
            "id": f"{split}-{number}",
            "images": [str(pictures[number])],
            "conversations": [ask(question, answer) for question, answer in talks[number]],
            "meta": {"kinds": [kind_of(question) for question, _ in talks[number]]},
        }
        for number in sorted(talks)
    ]


def main() -> None:
    for split, counts in prepare().items():
        print(f"{path_of(split)}: {counts['pictures']:,} pictures, {counts['questions']:,} questions")


if __name__ == "__main__":
    main()
