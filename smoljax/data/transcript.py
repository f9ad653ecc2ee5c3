"""A conversation as text through a chat template, and which of its characters are to be learned.

Rendering a jinja template in its sandbox costs more than everything else about a short conversation. Templates
copy texts as they are, so each *form* of conversation (roles and kinds of items) is rendered once, with marks
in place of texts, and filled in after that. A template that changes its texts is noticed by its marks, and
rendered anew each time.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smoljax.data.config import LossOn
from smoljax.errors import SmoljaxError
from smoljax.processing.chat import Message, render
from smoljax.processing.tokenizer import END_OF_UTTERANCE, IM_END, IMAGE_TOKEN

Span = tuple[int, int]  # characters, the second one outside

#: (role, ("text" or "image", …)) of each message.
Form = tuple[tuple[str, tuple[str, ...]], ...]

# Private-use characters: no template treats them, and blanks around them show whether it strips.
_MARK = "\ue000"


@dataclass(frozen=True)
class Transcript:
    """A rendered conversation.

    Attributes:
      text: with `<image>` where pictures go.
      learned: spans of `text` whose tokens are targets, in order.
    """

    text: str
    learned: tuple[Span, ...]


def transcript(
    template: str, special_tokens: Mapping[str, str], messages: Sequence[Message], loss_on: LossOn
) -> Transcript:
    """Renders a conversation and marks what is to be learned (see `smoljax.data.encode.encode`).

    Args:
      template: jinja source.
      special_tokens: for templates that print them.
      messages: checked already (`smoljax.data.records.check_conversation`).
      loss_on: "smolvlm2" or "answers".

    Raises:
      SmoljaxError: the template failed, or it does not write the messages one after the other.
    """
    form, texts = _form(messages)
    pieces = _skeleton(template, tuple(sorted(special_tokens.items())), form)
    if pieces is None:
        return _slow(template, special_tokens, messages, loss_on)
    parts: list[str] = []
    learned: list[Span] = []
    length, given = 0, iter(texts)
    for (role, _), turn in zip(form, pieces, strict=True):
        start = length
        for piece in turn.pieces:
            part = next(given) if piece is None else piece
            parts.append(part)
            length += len(part)
        learned += _spans(role, start, length, start + turn.opening, length - turn.closing, loss_on, turn.end)
    return Transcript("".join(parts), tuple(learned))


def user_turn(template: str, special_tokens: Mapping[str, str], text: str) -> str:
    """A user's message up to and with the token that ends it: the text whose last token stands for `text`."""
    message = {"role": "user", "content": [{"type": "text", "text": text}]}
    pieces = _skeleton(template, tuple(sorted(special_tokens.items())), (("user", ("text",)),))
    if pieces is None:
        rendered = _render(template, special_tokens, [message])
        end, after = _end(rendered)
    else:
        rendered = "".join(text if piece is None else piece for piece in pieces[0].pieces)
        end, after = pieces[0].end, pieces[0].closing
    if not end:
        raise SmoljaxError(f"the chat template does not end a turn with {END_OF_UTTERANCE} or {IM_END}")
    return rendered[: len(rendered) - after + end]


@dataclass(frozen=True)
class _Turn:
    """One message of a form.

    Attributes:
      pieces: of its text; None where one of the message's texts goes.
      opening: characters before an assistant's words (its name), 0 for others.
      closing: characters from the token that ends the turn to the turn's end.
      end: characters of that token, 0 for none.
    """

    pieces: tuple[str | None, ...]
    opening: int
    closing: int
    end: int


def _spans(
    role: str, start: int, stop: int, words: int, end: int, loss_on: LossOn, end_length: int
) -> list[Span]:
    if loss_on == "answers":
        return [(words, end + end_length)] if role == "assistant" else []
    return [(start, stop)] if role == "assistant" else [(end, stop)]


def _form(messages: Sequence[Message]) -> tuple[Form, list[str]]:
    form, texts = [], []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            content = ({"type": "text", "text": content},)
        kinds = []
        for item in content:
            kinds.append(item["type"])
            if item["type"] == "text":
                texts.append(item["text"])
        form.append((message["role"], tuple(kinds)))
    return tuple(form), texts


@functools.lru_cache(maxsize=1024)
def _skeleton(template: str, special: tuple[tuple[str, str], ...], form: Form) -> tuple[_Turn, ...] | None:
    """The form's literal text around its texts; None where the template does not copy its texts."""
    tokens = dict(special)
    count = 0
    messages: list[Message] = []
    for role, kinds in form:
        items: list[dict[str, str]] = []
        for kind in kinds:
            if kind == "text":
                items.append({"type": "text", "text": f" \n{_MARK}{count}{_MARK}\n "})
                count += 1
            else:
                items.append({"type": "image"})
        messages.append({"role": role, "content": items})
    turns: list[_Turn] = []
    text, seen = "", 0
    for number, (role, kinds) in enumerate(form):
        opening = _opening(template, tokens, messages[:number], text) if role == "assistant" else 0
        longer = _render(template, tokens, messages[: number + 1])
        if not longer.startswith(text):
            return None
        turn, text = longer[len(text) :], longer
        pieces: list[str | None] = []
        for _ in range(kinds.count("text")):
            before, found, turn_rest = turn.partition(f" \n{_MARK}{seen}{_MARK}\n ")
            if not found:
                return None
            pieces += [before, None]
            turn, seen = turn_rest, seen + 1
        pieces.append(turn)
        if any(piece is not None and _MARK in piece for piece in pieces):
            return None
        end, closing = _end(turn)
        turns.append(_Turn(tuple(pieces), opening, closing, end))
    return tuple(turns)


def _slow(
    template: str, special_tokens: Mapping[str, str], messages: Sequence[Message], loss_on: LossOn
) -> Transcript:
    """`transcript` by rendering every beginning of the conversation."""
    learned: list[Span] = []
    text = ""
    for number, message in enumerate(messages):
        opening = 0
        if message["role"] == "assistant":
            opening = _opening(template, special_tokens, messages[:number], text)
        longer = _render(template, special_tokens, messages[: number + 1])
        if not longer.startswith(text):
            raise SmoljaxError(
                "the chat template rewrites earlier messages when later ones come, so what is learned cannot be "
                "told apart; give each turn as a conversation of its own"
            )
        end, closing = _end(longer[len(text) :])
        words, stop = len(text) + opening, len(longer)
        learned += _spans(message["role"], len(text), stop, words, stop - closing, loss_on, end)
        text = longer
    return Transcript(text, tuple(learned))


def _opening(template: str, tokens: Mapping[str, str], before: Sequence[Message], text: str) -> int:
    """Characters that the template writes before an assistant's words."""
    if not before:  # an assistant who speaks first: there is no prompt that would show it
        return 0
    prompt = _render(template, tokens, before, add_generation_prompt=True)
    return len(prompt) - len(text) if prompt.startswith(text) else 0


def _end(turn: str) -> tuple[int, int]:
    """(characters of the token that ends a turn, characters from its start to the turn's end)."""
    for token in (END_OF_UTTERANCE, IM_END):
        place = turn.rfind(token)
        if place >= 0:
            return len(token), len(turn) - place
    return 0, 0


def _render(
    template: str,
    special_tokens: Mapping[str, str],
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
) -> str:
    return render(
        template, messages, add_generation_prompt=add_generation_prompt, special_tokens=special_tokens
    )


def split_at_pictures(text: str) -> int:
    """Characters of `text` up to and with its last `<image>`; 0 without any."""
    place = text.rfind(IMAGE_TOKEN)
    return 0 if place < 0 else place + len(IMAGE_TOKEN)
