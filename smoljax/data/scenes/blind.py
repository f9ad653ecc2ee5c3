"""What the questions give away: the accuracy of whoever never looks at the picture."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from smoljax.data.scenes.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES

_PHRASE = re.compile(
    r"the(?: (?:"
    + "|".join((*SIZES, *TEXTURES, *COLOURS))
    + r"))*(?: (?:"
    + "|".join((*SHAPES, "object"))
    + r"|shape(?!s| of)))"
)
_WORD = re.compile(
    r"\b(?:" + "|".join((*SIZES, *TEXTURES, *COLOURS, "crosses", *(s + "s?" for s in SHAPES))) + r")\b"
)


def template(question: str) -> tuple[str, list[str]]:
    """A question with its phrases and words made blanks, and what stood in the phrases' blanks."""
    phrases = _PHRASE.findall(question)
    return _WORD.sub("_", _PHRASE.sub("…", question)), phrases


def blind_baseline(
    builder: Any, fit_split: str = "train", split: str = "test", unseen_only: bool = False
) -> dict[str, float]:
    """Accuracy of the most frequent answer to each question's template, by kind.

    Fitted on `fit_split`: for each (kind, template) the most frequent answer, where an answer that repeats a
    phrase of the question counts as "the first phrase" or "the second".

    Args:
      builder: of `open_scenes`.
      fit_split, split: where it is fitted and where it is scored; TFDS' slices are understood.
      unseen_only: score only questions with `unseen_pair`.

    Returns:
      {kind: share of questions answered exactly}, and "all".
    """
    seen: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for kind, question, answer, _ in _questions(builder, fit_split):
        text, phrases = template(question)
        seen[kind, text][f"#{phrases.index(answer)}" if answer in phrases else answer] += 1
    best = {key: counts.most_common(1)[0][0] for key, counts in seen.items()}
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for kind, question, answer, unseen in _questions(builder, split):
        if unseen_only and not unseen:
            continue
        text, phrases = template(question)
        guess = best.get((kind, text), "")
        guess = phrases[int(guess[1:])] if guess.startswith("#") else guess
        for name in (kind, "all"):
            total[name] += 1
            right[name] += guess == answer
    return {name: right[name] / total[name] for name in total}


def _questions(builder: Any, split: str) -> Iterable[tuple[str, str, str, bool]]:
    from tensorflow_datasets import decode

    source = builder.as_data_source(split, decoders={"image": decode.SkipDecoding()})
    for example in source:
        asked = example["questions"]
        for kind, question, answer, unseen in zip(
            asked["kind"], asked["question"], asked["answer"], asked["unseen_pair"], strict=True
        ):
            yield kind.decode(), question.decode(), answer.decode(), bool(unseen)
