"""Questions about a layout, with answers that no habit of the language gives away.

Yes and no are equally likely in every form; a "no" is near a "yes" (the colour is there and the shape is
there, only not together). Outside `test_compositional` no question names a pair of `UNSEEN_PAIRS`, not even to
have it denied: a model would learn that such things do not exist.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smoljax.data.scenes.draws import Draws
from smoljax.data.scenes.language import DOMINANT_PIXELS, OPPOSITE, reference, relation
from smoljax.data.scenes.layout import Layout, Thing
from smoljax.data.scenes.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES, UNSEEN_PAIRS

COUNT_WEIGHTS = {0: 0.2, 1: 0.22, 2: 0.34, 3: 0.5, 4: 0.8, 5: 1.0}
_DIRECTIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Question:
    """A question and its one answer.

    Attributes:
      question, answer: lower case words, digits for counts, printed text as printed.
      kind: one of `vocabulary.KINDS`.
      unseen_pair: whether it names such a pair or its answer rests on an object of one.
    """

    question: str
    answer: str
    kind: str
    unseen_pair: bool


def ask_all(layout: Layout, draws: Draws, unseen: bool) -> list[Question]:
    """About 18 questions, grouped by kind. `unseen`: may name pairs of `UNSEEN_PAIRS`, and prefers to."""
    asker = _Asker(layout, draws, unseen)
    groups = (
        asker.existence,
        asker.count,
        asker.attributes,
        asker.comparison,
        asker.relation_yes_no,
        asker.relation_choice,
        asker.relation_open,
        asker.reading,
    )
    questions: list[Question] = []
    for group in groups:
        for item in group():
            if item.question not in {other.question for other in questions}:
                questions.append(item)
    return questions


def _rests(*things: Thing) -> bool:
    return any(thing.pair in UNSEEN_PAIRS for thing in things)


class _Asker:
    def __init__(self, layout: Layout, draws: Draws, unseen: bool):
        self.layout, self.draws, self.unseen = layout, draws, unseen
        self.things = layout.things

    def order(self) -> list[Thing]:
        """The things shuffled; in `test_compositional` mostly those of unseen pairs first."""
        things = self.draws.shuffled(self.things)
        if self.unseen and self.draws.chance(0.7):
            things.sort(key=lambda thing: thing.pair not in UNSEEN_PAIRS)
        return things

    def say(self, forms: Sequence[str], **words: str) -> str:
        return self.draws.choice(forms).format(**words)

    # Existence

    def existence(self) -> list[Question]:
        draws = self.draws
        single = draws.choice((self._exists_one, self._exists_sized, self._exists_textured))
        return [
            self._exists_pair(True),
            self._exists_pair(False),
            self._exists_pair(draws.chance(0.5)),
            single(draws.chance(0.5)),
        ]

    def _exists(self, noun: str, yes: bool, unseen: bool) -> Question:
        text = self.say(
            ("Is there a {noun}?", "Is there a {noun} in the picture?", "Can you see a {noun}?"), noun=noun
        )
        # "a orange circle" would be wrong English, and "an" would give nothing away.
        return Question(text.replace(" a orange", " an orange"), _yes(yes), "existence", unseen)

    def _exists_pair(self, yes: bool) -> Question:
        there = {thing.pair for thing in self.things}
        if yes:
            colour, shape = self.order()[0].pair
        else:
            colours, shapes = {pair[0] for pair in there}, {pair[1] for pair in there}
            allowed = [
                (colour, shape)
                for colour in COLOURS
                for shape in SHAPES
                if (colour, shape) not in there and (self.unseen or (colour, shape) not in UNSEEN_PAIRS)
            ]
            hard = [pair for pair in allowed if pair[0] in colours and pair[1] in shapes]
            half = [pair for pair in allowed if pair[0] in colours or pair[1] in shapes]
            pool = hard or half
            if self.unseen and self.draws.chance(0.7):
                unseen = [pair for pair in hard if pair in UNSEEN_PAIRS]
                pool = unseen or [pair for pair in half if pair in UNSEEN_PAIRS] or pool
            colour, shape = self.draws.choice(pool)
        return self._exists(f"{colour} {shape}", yes, (colour, shape) in UNSEEN_PAIRS)

    def _exists_one(self, yes: bool) -> Question:
        word, vocabulary = self.draws.choice((("colour", COLOURS), ("shape", SHAPES)))
        there = [getattr(thing, word) for thing in self.order()]
        value = there[0] if yes else self.draws.choice([item for item in vocabulary if item not in there])
        named = [thing for thing in self.things if getattr(thing, word) == value]
        noun = f"{value} shape" if word == "colour" else value
        return self._exists(noun, yes, bool(named) and all(_rests(thing) for thing in named))

    def _exists_sized(self, yes: bool) -> Question:
        return self._exists_with("size", SIZES, yes)

    def _exists_textured(self, yes: bool) -> Question:
        return self._exists_with("texture", TEXTURES, yes)

    def _exists_with(self, extra: str, vocabulary: Sequence[str], yes: bool) -> Question:
        """ "Is there a small circle?", "Is there a striped red shape?" """
        word = self.draws.choice(("colour", "shape"))
        there = [(getattr(thing, extra), getattr(thing, word)) for thing in self.order()]
        absent = [pair for value in there for pair in _swapped(value, vocabulary) if pair not in there]
        if not absent:
            return self._exists_one(yes)
        value, base = there[0] if yes else self.draws.choice(absent)
        named = [t for t in self.things if (getattr(t, extra), getattr(t, word)) == (value, base)]
        noun = f"{value} {base} shape" if word == "colour" else f"{value} {base}"
        return self._exists(noun, yes, bool(named) and all(_rests(thing) for thing in named))

    # Count

    def count(self) -> list[Question]:
        forms = ("How many {noun} are there?", "How many {noun} are in the picture?", "Count the {noun}.")
        whole = self.say(("How many shapes are there?", "How many objects are in the picture?"))
        questions = [Question(whole, str(len(self.things)), "count", False)]
        for word, vocabulary in (("shape", SHAPES), ("colour", COLOURS)):
            by_count: dict[int, list[str]] = {}
            for value in vocabulary:
                number = sum(getattr(thing, word) == value for thing in self.things)
                by_count.setdefault(number, []).append(value)
            numbers = sorted(by_count)
            number = self.draws.weighted(numbers, [COUNT_WEIGHTS[n] for n in numbers])
            value = self.draws.choice(by_count[number])
            text = self.say(forms, noun=_plural(value) if word == "shape" else f"{value} shapes")
            rests = _rests(*(thing for thing in self.things if getattr(thing, word) == value))
            questions.append(Question(text, str(number), "count", rests))
        return questions

    # Attributes

    def attributes(self) -> list[Question]:
        forms = {
            "colour": ("What colour is {it}?", "Which colour does {it} have?", "What is the colour of {it}?"),
            "shape": ("What shape is {it}?", "Which shape does {it} have?"),
            "size": ("What size is {it}?", "Is {it} small or large?"),
            "texture": ("What texture does {it} have?", "Is {it} plain, striped or dotted?"),
        }
        questions = []
        for word, times in (("colour", 2), ("shape", 2), ("size", 1), ("texture", 1)):
            known = [(ref, thing) for thing in self.order() if (ref := self.refer(thing, word))]
            for ref, thing in known[:times]:
                # "the red shape" is an odd thing to ask the shape of.
                ref = ref.removesuffix("shape") + "object" if word == "shape" else ref
                text = self.say(forms[word], it=ref)
                questions.append(Question(text, getattr(thing, word), word, _rests(thing)))
        return questions

    def refer(self, thing: Thing, without: str = "") -> str:
        return reference(self.things, thing, without)

    # Comparison

    def comparison(self) -> list[Question]:
        makers: list[Callable[[], Question | None]] = [
            lambda: self._same("colour"),
            lambda: self._same("shape"),
            lambda: self._same("size"),
            lambda: self._same("texture"),
            self._larger,
            self._more,
        ]
        made = (maker() for maker in self.draws.shuffled(makers))
        return [item for item in made if item is not None][:2]

    def _same(self, word: str) -> Question | None:
        """Asked only where the picture has both a pair that is alike and one that is not: half are "yes"."""
        known = [(ref, thing) for thing in self.order() if (ref := self.refer(thing, word))]
        pairs: dict[bool, list[tuple[str, str, bool]]] = {True: [], False: []}
        for k, (one, thing) in enumerate(known):
            for other, second in known[k + 1 :]:
                alike = getattr(thing, word) == getattr(second, word)
                pairs[alike].append((one, other, _rests(thing, second)))
        if not pairs[True] or not pairs[False]:
            return None
        alike = self.draws.chance(0.5)
        one, other, rests = pairs[alike][0]
        if self.draws.chance(0.5):
            one, other = other, one
        forms = ("Do {one} and {other} have the same {word}?", "Do {one} and {other} share the same {word}?")
        if word in ("colour", "size"):
            forms = (*forms[:1], "Are {one} and {other} the same {word}?")
        if word == "shape":
            one, other = (ref.removesuffix("shape") + "object" for ref in (one, other))
        return Question(self.say(forms, one=one, other=other, word=word), _yes(alike), "comparison", rests)

    def _larger(self) -> Question | None:
        known = [(ref, thing) for thing in self.order() if (ref := self.refer(thing, "size"))]
        for k, (one, thing) in enumerate(known):
            for other, second in known[k + 1 :]:
                if thing.size != second.size:
                    first, then = (one, other) if self.draws.chance(0.5) else (other, one)
                    larger = self.draws.chance(0.5)
                    answer = one if (thing.size == "large") == larger else other
                    forms = ("Which is {how}, {one} or {other}?", "What is {how}: {one} or {other}?")
                    how = "larger" if larger else "smaller"
                    text = self.say(forms, how=how, one=first, other=then)
                    return Question(text, answer, "comparison", _rests(thing, second))
        return None

    def _more(self) -> Question | None:
        for word in self.draws.shuffled(("shape", "colour")):
            values = list(dict.fromkeys(getattr(thing, word) for thing in self.order()))
            counts = {v: sum(getattr(thing, word) == v for thing in self.things) for v in values}
            for k, one in enumerate(values):
                for other in values[k + 1 :]:
                    if counts[one] != counts[other]:
                        first, then = (one, other) if self.draws.chance(0.5) else (other, one)
                        nouns = [_plural(v) if word == "shape" else f"{v} shapes" for v in (first, then)]
                        text = f"Are there more {nouns[0]} than {nouns[1]}?"
                        rests = _rests(*(t for t in self.things if getattr(t, word) in (one, other)))
                        return Question(text, _yes(counts[first] > counts[then]), "comparison", rests)
        return None

    # Relation

    def _clear(self) -> list[tuple[Thing, Thing, str]]:
        """Ordered pairs of things that can be named and whose relation is clear."""
        known = [thing for thing in self.order() if self.refer(thing)]
        pairs = [(one, other) for one in known for other in known if one is not other]
        found = [(one, other, word) for one, other in pairs if (word := relation(one, other))]
        found = self.draws.shuffled(found)
        if self.unseen and self.draws.chance(0.7):
            found.sort(key=lambda item: not _rests(item[0], item[1]))
        return found

    def relation_yes_no(self) -> list[Question]:
        questions = []
        truths = [True, False] if self.draws.chance(0.5) else [False, True]
        clear = self._clear()
        # With one clear pair there is still its other order, so both truths are asked or neither.
        for (one, other, word), truth in zip(clear, truths, strict=False):
            text = self.say(
                ("Is {one} {word} {other}?", "Does {one} lie {word} {other}?"),
                one=self.refer(one),
                other=self.refer(other),
                word=word if truth else OPPOSITE[word],
            )
            questions.append(Question(text, _yes(truth), "relation", _rests(one, other)))
        return questions

    def relation_choice(self) -> list[Question]:
        forms = ("Where is {one} relative to {other}?", "On which side of {other} is {one}?")
        return [
            Question(
                self.say(forms, one=self.refer(one), other=self.refer(other)),
                word.removesuffix(" of"),
                "relation",
                _rests(one, other),
            )
            for one, other, word in self._clear()[:2]
        ]

    def relation_open(self) -> list[Question]:
        """Only where one thing answers clearly and none answers doubtfully."""
        found = []
        for other in self.order():
            name = self.refer(other)
            for word in self.draws.shuffled(_DIRECTIONS):
                fits = [t for t in self.things if t is not other and relation(t, other) == word]
                doubtful = [
                    t
                    for t in self.things
                    if t is not other
                    and relation(t, other) is None
                    and _towards(t, other, word) > DOMINANT_PIXELS / 2
                ]
                if name and len(fits) == 1 and not doubtful and (answer := self.refer(fits[0])):
                    text = self.say(
                        ("What is {word} {it}?", "Which object is {word} {it}?"), word=word, it=name
                    )
                    found.append(Question(text, answer, "relation", _rests(fits[0], other)))
                    break
        return found[:2]

    # Reading

    def reading(self) -> list[Question]:
        printed = self.layout.print
        if not printed.text:
            return []
        noun = "number" if printed.is_number else "word"
        forms = ("What {noun} is printed?", "Which {noun} can be read?", "What is written in the picture?")
        return [Question(self.say(forms, noun=noun), printed.text, "reading", False)]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


def _swapped(pair: tuple[str, str], vocabulary: Sequence[str]) -> list[tuple[str, str]]:
    return [(value, pair[1]) for value in vocabulary if value != pair[0]]


def _towards(one: Thing, other: Thing, word: str) -> float:
    """How many pixels `one` lies in the direction `word` from `other`."""
    dx, dy = one.middle[0] - other.middle[0], one.middle[1] - other.middle[1]
    return {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[word]
