"""Text ↔ token ids: a thin face on `tokenizers.Tokenizer`.

No id is a constant here: special tokens are looked up by their text, so one class serves the vocabularies of
49280 tokens (with `<row_r_col_c>`), of 49155 (without), of SmolLM2 and of the tests.
"""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer as _Tokenizer
from tokenizers import pre_tokenizers

from smoljax.errors import SmoljaxError

IMAGE_TOKEN = "<image>"
FAKE_TOKEN = "<fake_token_around_image>"
GLOBAL_TOKEN = "<global-img>"
END_OF_UTTERANCE = "<end_of_utterance>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"

_REPLACEMENT = "�"  # what undecodable bytes become


class Tokenizer:
    """Encodes and decodes, and adds nothing of its own accord (reference: a processor's `tokenizer`)."""

    def __init__(self, backend: _Tokenizer) -> None:
        # A tokenizer.json may carry truncation or padding settings; both would cut image tokens in silence.
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "tokenizer.json") -> "Tokenizer":
        """Reads a `tokenizer.json`; SmoljaxError where it is broken."""
        try:
            return cls(_Tokenizer.from_buffer(data))
        except Exception as error:  # the Rust side raises bare Exceptions
            raise SmoljaxError(f"{name}: not a readable tokenizer ({error}); fetch the file again") from error

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens written out in it become their ids, nothing is added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """`encode`, and for each token the character of `text` where it starts."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD; ids outside the vocabulary vanish."""
        return self.backend.decode([int(item) for item in ids], skip_special_tokens=skip_special)

    def token_id(self, token: str) -> int | None:
        """The id of one token's text, None where the vocabulary has no such token."""
        return self.backend.token_to_id(token)

    def token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of one id (byte-level: a space is Ġ), None outside the vocabulary."""
        return self.backend.id_to_token(token_id)

    @property
    def image_id(self) -> int | None:
        """`<image>`: 49190 in the common vocabulary, 49153 in the first 2.2B; None for text only."""
        return self.token_id(IMAGE_TOKEN)

    def like_transformers_5(self) -> "Tokenizer":
        """A copy that splits text as `AutoTokenizer` of transformers 5 does (seen in 5.23).

        That version takes the released checkpoints for plain GPT-2 and drops the `Digits` step of their
        `tokenizer.json`: several blanks or newlines before a digit become other tokens ("\\n\\n1"). The
        models were trained with the file as it is, which is what this class obeys by default.
        """
        copy = _Tokenizer.from_str(self.backend.to_str())
        copy.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # type: ignore[assignment]
        return Tokenizer(copy)

    def incremental(self, *, skip_special: bool = True) -> "IncrementalDecoder":
        """A new streaming decoder."""
        return IncrementalDecoder(self, skip_special=skip_special)


class IncrementalDecoder:
    """Decodes a stream of ids: `push` gives the text that is certain, `finish` the rest.

    A character of several bytes may be spread over tokens, so text that ends in an unfinished character waits
    for the next id. All pieces joined equal `Tokenizer.decode` of all ids (byte-level vocabularies).
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._waiting: list[int] = []

    def push(self, token_id: int) -> str:
        """Takes the next id; returns new text, often a whole token's, sometimes empty."""
        self._waiting.append(int(token_id))
        text = self._tokenizer.decode(self._waiting, skip_special=self._skip_special)
        if text.endswith(_REPLACEMENT):
            return ""
        self._waiting.clear()
        return text

    def finish(self) -> str:
        """The text still waiting; an unfinished character becomes U+FFFD."""
        text = self._tokenizer.decode(self._waiting, skip_special=self._skip_special)
        self._waiting.clear()
        return text


def unique_ids(ids: Sequence[int | None]) -> tuple[int, ...]:
    """The ids in order, without None and repeats."""
    return tuple(dict.fromkeys(item for item in ids if item is not None))
