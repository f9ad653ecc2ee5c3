"""Messages → one text, through the checkpoint's own jinja template.

A template comes with downloaded weights, so it is untrusted code: it runs in jinja2's immutable sandbox and
sees only plain strings, numbers, lists and dicts. Reference: `render_jinja_template` of transformers.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing.tokenizer import IMAGE_TOKEN

VIDEO_TOKEN = "<video>"

Message = Mapping[str, Any]

#: The shipped templates know no video; with a video item the reference takes this one instead
#: (`SmolVLMProcessor.apply_chat_template`). It writes `<video>` where the frames go.
_VIDEO_TEMPLATE = """\
<|im_start|>\
{%- for message in messages -%}
{{ message['role'] | capitalize }}{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}
{%- for item in message['content'] -%}
{%- if item['type'] == 'text' -%}{{ item['text'] }}{%- else -%}{{ '<' + item['type'] + '>' }}{%- endif -%}
{%- endfor -%}
{{ '<end_of_utterance>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""


def normalise_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Checks messages and gives each content as a list of items `{"type": "text"|"image"|"video", …}`.

    Raises:
      UsageError: no message, a message without role or content, an item of an unknown type.
    """
    if isinstance(messages, Mapping | str) or not messages:
        raise UsageError("messages is empty; give a list such as [{'role': 'user', 'content': 'Hello'}]")
    result = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UsageError(f"message {index} has no 'role' (system, user or assistant)")
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, Sequence) or not content:
            raise UsageError(
                f"message {index} ({message['role']}): content must be a text or a list of items"
            )
        result.append({**message, "content": [_item(item, index) for item in content]})
    return result


def fill_media(messages: Sequence[Message], kind: str, given: Sequence[Any]) -> list[Any]:
    """The pictures (or videos) of a chat in the order of their places.

    Args:
      messages: as `normalise_messages` takes them.
      kind: "image" or "video".
      given: for the places whose item does not hold one itself (under its kind, or "path").

    Raises:
      UsageError: an item names an address on the network.
    """
    found, rest = [], list(given)
    for index, message in enumerate(normalise_messages(messages)):
        for item in message["content"]:
            if item["type"] != kind:
                continue
            own = item.get(kind, item.get("path"))
            if own is None and "url" in item:
                raise UsageError(
                    f"message {index}: nothing is fetched from {item['url']}; download it and give path"
                )
            if own is not None:
                found.append(own)
            elif rest:
                found.append(rest.pop(0))
    return found + rest  # too many are counted, and refused, with the places


def _item(item: Any, index: int) -> dict[str, Any]:
    if isinstance(item, str):
        item = {"type": "text", "text": item}
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind not in ("text", "image", "video"):
        raise UsageError(f"message {index}: an item's type is {kind!r}; known are text, image and video")
    if kind == "text" and not isinstance(item.get("text"), str):
        raise UsageError(f"message {index}: a text item has no 'text'")
    return dict(item)


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    special_tokens: Mapping[str, str] | None = None,
) -> str:
    """The text of a chat, with `<image>` and `<video>` where pictures and videos go.

    Args:
      template: jinja source.
      messages: as `normalise_messages` takes them.
      add_generation_prompt: end with the opening of the assistant's turn.
      special_tokens: `bos_token`, `eos_token`, … for templates that print them.

    Raises:
      UsageError: malformed messages.
      SmoljaxError: the template does not compile, calls `raise_exception`, or reaches outside the sandbox.
    """
    chat = normalise_messages(messages)
    if any(item["type"] == "video" for message in chat for item in message["content"]):
        template = _VIDEO_TEMPLATE
    wants_items = _takes_items(template)
    plain = [
        {
            **_plain({key: value for key, value in message.items() if key != "content"}),
            "content": [_slim(item) for item in message["content"]]
            if wants_items
            else _joined(message["content"]),
        }
        for message in chat
    ]
    try:
        return _compile(template).render(
            messages=plain, add_generation_prompt=add_generation_prompt, **dict(special_tokens or {})
        )
    except jinja2.TemplateError as error:
        raise SmoljaxError(f"the chat template failed: {error}") from error
    except Exception as error:  # a template can raise whatever an expression raises
        raise SmoljaxError(f"the chat template failed: {type(error).__name__}: {error}") from error


def _takes_items(template: str) -> bool:
    """Whether a template reads content as a list of typed items (SmolVLM) or as a string (ChatML)."""
    return re.search(r"""\[\s*['"]type['"]\s*\]|\.type\b""", template) is not None


def _slim(item: Mapping[str, Any]) -> dict[str, str]:
    # Pictures, paths and arrays in an item are none of the template's business.
    return {"type": "text", "text": item["text"]} if item["type"] == "text" else {"type": item["type"]}


def _joined(items: Sequence[Mapping[str, Any]]) -> str:
    return "".join(item["text"] if item["type"] == "text" else IMAGE_TOKEN for item in items)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words in some templates; inert here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        """Gives back the nodes between the two tags as they are."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render_vlmevalkit(messages: Sequence[Message]) -> str:
    """A video question as the public evaluation writes it: no template, every piece joined by blanks.

    Reference: `SmolVLM2.build_prompt_video` of VLMEvalKit. Both turns open with `<|im_start|>`, the video
    comes before the question, and the prompt ends with the opening of the assistant's turn.

    Raises:
      UsageError: anything but an optional system message and one user message.
    """
    chat = normalise_messages(messages)
    roles = [message["role"] for message in chat]
    if roles not in (["user"], ["system", "user"]):
        raise UsageError(
            f"the vlmevalkit prompt is one user message, with or without a system one, not {roles}"
        )
    system = (
        _joined(chat[0]["content"])
        if len(chat) == 2
        else "pay attention to the video and answer the question"
    )
    items = chat[-1]["content"]
    media = [f"<{item['type']}>" for item in items if item["type"] != "text"]
    texts = [item["text"].strip() for item in items if item["type"] == "text"]
    opening = ["<|im_start|>System:", system, "<end_of_utterance>\n", "<|im_start|>User:"]
    return " ".join([*opening, *media, *texts, "<end_of_utterance>", "\nAssistant:"])
