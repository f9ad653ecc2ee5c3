"""GGUF metadata → the tokenizer and generation files of a Hugging Face folder.

A GGUF file carries the vocabulary, the merges and a type for each token, but only a name for the
pre-tokenizer; `_PRE_TOKENIZERS` says what each name that we read stands for (source: the tokenizer.json files
of the models it was given for, and `llama_vocab` in llama.cpp).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from smoljax.config import TextConfig
from smoljax.errors import SmoljaxError

# `gguf.TokenType`: what a token is to the tokenizer.
_CONTROL, _USER_DEFINED = 3, 4

_PRE_TOKENIZERS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    ),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
}


def tokenizer_files(metadata: Mapping[str, Any], text: TextConfig, path: str | Path) -> dict[str, bytes]:
    """The small files beside the weights that a processor and the PyTorch reference read.

    Args:
      metadata: GGUF keys to values.
      text: the decoder's sizes.
      path: the GGUF file, for messages.

    Returns:
      `tokenizer.json`, `tokenizer_config.json` (special tokens and the chat template) and
      `generation_config.json` (stop ids), as UTF-8 bytes.

    Raises:
      SmoljaxError: a tokenizer of another kind, a required key missing, lists of unlike length, merges that
        do not fit the vocabulary, or more tokens than the embedding table has rows.
    """
    tokens = _tokens(metadata, path)
    if len(tokens) > text.vocab_size:
        raise SmoljaxError(f"{path}: {len(tokens)} tokens but only {text.vocab_size} embedding rows")
    generation = {f"{role}_token_id": value for role, value in generation_ids(metadata, path).items()}
    return {
        "tokenizer.json": rebuild_tokenizer(metadata, path).to_str(pretty=True).encode(),
        "tokenizer_config.json": _json(_tokenizer_config(metadata, text.max_positions, tokens, path)),
        "generation_config.json": _json(generation),
    }


def rebuild_tokenizer(metadata: Mapping[str, Any], path: str | Path) -> Tokenizer:
    """The byte-level BPE tokenizer that the metadata describes.

    Control tokens become special tokens (left out of decoded text on request), user-defined ones plain added
    tokens; both are matched in raw text before BPE.

    Raises:
      SmoljaxError: as `tokenizer_files`.
    """
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise SmoljaxError(f"{path}: tokenizer.ggml.model is {kind!r}; only 'gpt2' (byte-level BPE) is read")
    if pre not in _PRE_TOKENIZERS:
        raise SmoljaxError(f"{path}: tokenizer.ggml.pre is {pre!r}; known: {', '.join(_PRE_TOKENIZERS)}")
    tokens = _tokens(metadata, path)
    lines = [line.partition(" ") for line in _strings(metadata, "tokenizer.ggml.merges", path)]
    merges = [(left, right) for left, _, right in lines]
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise SmoljaxError(f"{path}: tokenizer.ggml.token_type does not name a type for each token")
    try:
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    except Exception as error:  # the Rust side raises bare Exceptions
        reason = str(error).splitlines()[0]
        raise SmoljaxError(f"{path}: the merges do not fit the vocabulary: {reason}") from error
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    added = [
        (token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)
    ]
    for token, kind in added:
        entry = AddedToken(token, normalized=False, special=kind == _CONTROL)
        (tokenizer.add_special_tokens if kind == _CONTROL else tokenizer.add_tokens)([entry])
    if metadata.get("tokenizer.ggml.add_bos_token"):
        bos = special_ids(metadata, path).get("bos")
        if bos is None:
            raise SmoljaxError(f"{path}: tokenizer.ggml.add_bos_token is set without a bos_token_id")
        name = tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[name, "$A"], pair=[name, "$A", name, "$B"], special_tokens=[(name, bos)]
        )
    return tokenizer


def special_ids(metadata: Mapping[str, Any], path: str | Path) -> dict[str, int]:
    """Ids of the tokens with a role: bos, eos, eot (end of a turn), pad, unk; those that the file names.

    Raises:
      SmoljaxError: no tokens, or an id outside the vocabulary.
    """
    size = len(_tokens(metadata, path))
    ids = {}
    for role, name in {"bos": "bos", "eos": "eos", "eot": "eot", "pad": "padding", "unk": "unknown"}.items():
        key = f"tokenizer.ggml.{name}_token_id"
        if key in metadata:
            if not (isinstance(metadata[key], int) and 0 <= metadata[key] < size):
                raise SmoljaxError(f"{path}: {key} is {metadata[key]!r}, no id of the {size} tokens")
            ids[role] = metadata[key]
    return ids


def generation_ids(metadata: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """bos, eos and pad as `generation_config.json` writes them: eos is a list where eot is another token."""
    ids = special_ids(metadata, path)
    found: dict[str, Any] = {role: ids[role] for role in ("bos", "eos", "pad") if role in ids}
    if "eot" in ids and ids["eot"] != ids.get("eos"):
        found["eos"] = [ids["eos"], ids["eot"]] if "eos" in ids else ids["eot"]
    return found


def _tokens(metadata: Mapping[str, Any], path: str | Path) -> list[str]:
    tokens = _strings(metadata, "tokenizer.ggml.tokens", path)
    if len(set(tokens)) != len(tokens):
        raise SmoljaxError(f"{path}: tokenizer.ggml.tokens names a token twice")
    return tokens


def _strings(metadata: Mapping[str, Any], key: str, path: str | Path) -> list[str]:
    if key not in metadata:
        raise SmoljaxError(f"{path}: the metadata key {key} is missing")
    value = metadata[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise SmoljaxError(f"{path}: {key} is no list of strings")
    return value


def _tokenizer_config(
    metadata: Mapping[str, Any], max_positions: int, tokens: list[str], path: str | Path
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
        # The class that reads tokenizer.json as it stands; GPT2Tokenizer would drop the digit rule.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for role, token_id in special_ids(metadata, path).items():
        if role != "eot":
            content[f"{role}_token"] = tokens[token_id]
    if template := metadata.get("tokenizer.chat_template"):
        content["chat_template"] = template
    return content


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
