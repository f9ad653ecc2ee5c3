"""Captions → words, as the COCO evaluation does it: Penn Treebank tokens, lower case, without punctuation.

The reference (`pycocoevalcap.tokenizer.PTBTokenizer`) runs Stanford CoreNLP 3.4.1 in Java and then drops a list of
punctuation tokens. This is the part of its grammar that captions meet, in Python: clitics ("isn't" → is n't),
hyphenated words and numbers kept whole, currency and percent signs apart, brackets as -lrb- and -rrb- (which, spelt
in lower case, the reference's list does not drop). Left out: its long list of abbreviations (only single letters
with stops, "u.s.", "e.g.", and the few of `_ABBREVIATIONS` keep theirs) and addresses of the web.
"""

import re

_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ABBREVIATIONS = "mr|mrs|ms|dr|st|vs|no|jr|sr|prof|inc|co|etc|ft|in|approx"
_TYPOGRAPHIC = str.maketrans({"’": "'", "‘": "`", "“": '"', "”": '"', "…": "...", "–": "-", "—": "-"})
_TWO_WORDS = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(gim|lem)(me)\b")
_TOKEN = re.compile(
    r"""
      (?:[a-z]\.){2,}                        # u.s.  e.g.
    | (?:"""
    + _ABBREVIATIONS
    + r""")\.(?=\s+\S)  # mr. smith
    | \.{3,} | --+
    | <\w+> | https?://\S+
    | [+-]?\d+(?:[.,:/]\d+)*(?!-?[^\W_])     # 3.5  1,000  10:30
    | n't\b | '(?:s|m|d|ll|re|ve|em|til|tis|twas)\b
    | [^\W\d_]+?(?=n't\b)                    # is|n't
    | (?:o|d)'[^\W\d_]+                      # o'clock
    | \w+(?:[-/.!]\w+)*(?=n't\b)
    | @?\w+(?:(?:[-/.!]|(?<=\w)_)\w+)*
    | \S
    """,
    re.VERBOSE,
)


def words(caption: str) -> list[str]:
    """The words of a caption: lower case, no punctuation."""
    text = caption.translate(_TYPOGRAPHIC).lower()
    text = _TWO_WORDS.sub(lambda match: " ".join(part for part in match.groups() if part), text)
    tokens = [_BRACKETS.get(match.group(), match.group()) for match in _TOKEN.finditer(text)]
    return [token for token in tokens if token not in _DROPPED and token != '"' and set(token) != {"."}]
