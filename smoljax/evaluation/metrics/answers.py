"""Is an answer right: VQA accuracy, exact and by the soft rule of VQAv2, and reading.

Normalisation follows the official VQA evaluation (Goyal et al. 2017, `vqaEval.py`): lower case, punctuation dropped
or turned into blanks, number words up to ten as digits, articles removed, apostrophes put back into contractions.
Two things differ: both sides are always normalised (there, the references only where they disagree), and an
answer that would vanish ("a", "the") is kept.
"""

import re
from collections.abc import Sequence

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = frozenset(("a", "an", "the"))
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_STOP = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
#: Written without their apostrophe these are no other words ("shed", "well", "lets" are, and stay).
_APOSTROPHES = (
    "ain't aren't can't couldn't could've didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "i'm i've isn't it'd it'll ma'am mightn't might've mustn't must've needn't o'clock oughtn't she's shouldn't "
    "should've somebody's someone's something's that'd that's there'd there're there's they'd they'll they're "
    "they've wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll "
    "who's who've why'll why're why's won't wouldn't would've y'all you'd you'll you're you've"
)
_CONTRACTIONS = {word.replace("'", ""): word for word in _APOSTROPHES.split()}


def normalise(answer: str) -> str:
    """The form in which two answers are compared."""
    text = answer.replace("\n", " ").replace("\t", " ").strip().lower()
    plain = text
    joined = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _MARKS:
        drop = joined or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if drop else " ")
    tokens = [_DIGITS.get(token, token) for token in _STOP.sub("", plain).split()]
    kept = [_CONTRACTIONS.get(token, token) for token in tokens if token not in _ARTICLES]
    return " ".join(kept) or " ".join(tokens) or text


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1.0 where the normalised answer equals a normalised accepted one, else 0.0."""
    own = normalise(answer)
    return float(any(own == normalise(other) for other in accepted))


def vqa_soft(answer: str, accepted: Sequence[str]) -> float:
    """The soft rule of VQAv2 (Antol et al. 2015), in [0, 1].

    With ten or more answers of different people: min(others that say the same / 3, 1), averaged over leaving out each
    person in turn. Fewer than ten are no poll but a list of accepted answers, any of which is right: `exact_match`.
    """
    if len(accepted) < 10:
        return exact_match(answer, accepted)
    own = normalise(answer)
    same = [own == normalise(other) for other in accepted]
    matches = sum(same)
    return sum(min((matches - one) / 3, 1.0) for one in same) / len(same)


def reading_match(answer: str, accepted: Sequence[str]) -> float:
    """1.0 where the words read equal an accepted text letter by letter, case and outer blanks aside.

    Without `normalise`, under which "TEN" would be read right as 10 and "THE CAT" as CAT.
    """
    own = " ".join(answer.split()).casefold()
    return float(any(own == " ".join(other.split()).casefold() for other in accepted))
