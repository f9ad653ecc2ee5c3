"""Chat templates: the released one, ChatML ones, and templates that fail or attack."""

import pytest

from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing import chat
from smoljax.processing.released import CHAT_TEMPLATE
from smoljax.processing.testing import tiny_processor

IMAGE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


def user(*items):
    return [{"role": "user", "content": list(items)}]


def render(messages, template=CHAT_TEMPLATE, **options):
    return chat.render(template, messages, **{"add_generation_prompt": True, **options})


def test_the_released_template():
    assert render(user(IMAGE, text("Hi"))) == "<|im_start|>User:<image>Hi<end_of_utterance>\nAssistant:"
    assert render(user(text("Hi"), IMAGE)) == "<|im_start|>User: Hi<image><end_of_utterance>\nAssistant:"
    assert render(user(text("Hi")), add_generation_prompt=False) == "<|im_start|>User: Hi<end_of_utterance>\n"


def test_string_content_is_wrapped():
    assert render([{"role": "user", "content": "Hi"}]) == render(user(text("Hi")))


def test_a_video_item_brings_the_template_that_knows_videos():
    messages = [{"role": "system", "content": "Be brief."}, *user({"type": "video"}, text("What?"), IMAGE)]
    want = "<|im_start|>System: Be brief.<end_of_utterance>\n"
    want += "User: <video>What?<image><end_of_utterance>\nAssistant:"
    assert render(messages) == want
    without = want.replace("<video>", "")
    assert render([messages[0], *user(text("What?"), IMAGE)]) == without
    assert render(user(IMAGE, {"type": "video"})).startswith("<|im_start|>User:<image><video>")


def test_a_template_of_a_text_model_gets_strings_and_special_tokens():
    template = "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{% endfor %}"
    assert render(user(text("a"), text("b ")), template, special_tokens={"bos_token": "<s>"}) == "<s>ab"


def test_helpers_of_the_reference():
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    )
    assert render([{"role": "user", "content": "<é>"}], template) == '{"role": "user", "content": "<é>"}'
    assert len(render(user(text("x")), "{{ strftime_now('%Y') }}")) == 4
    assert render(user(text("x")), "{% generation %}{{ messages[0].content }}{% endgeneration %}") == "x"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{% for %}",
        "{{ messages.foo.bar }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_failing_or_hostile_template_is_one_line(template):
    with pytest.raises(SmoljaxError, match="the chat template failed") as caught:
        render(user(text("x")), template)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "empty"),
        ("Hi", "empty"),
        ([{"content": "x"}], "no 'role'"),
        ([{"role": "user"}], "content must be"),
        ([{"role": "user", "content": []}], "content must be"),
        (user({"type": "audio"}), "'audio'"),
        (user({"type": "text"}), "no 'text'"),
        (user(3), "None"),
    ],
)
def test_malformed_messages(messages, message):
    with pytest.raises(UsageError, match=message):
        render(messages)


def test_pictures_inside_the_items_never_reach_the_template():
    template = (
        "{% for item in messages[0]['content'] %}{{ item['type'] }}{{ item['image'] is defined }}{% endfor %}"
    )
    assert render(user({"type": "image", "image": object()}), template) == "imageFalse"


def test_the_evaluations_prompt_is_one_question():
    messages = [{"role": "system", "content": "S"}, *user({"type": "video"}, text(" Q "))]
    want = "<|im_start|>System: S <end_of_utterance>\n "
    want += "<|im_start|>User: <video> Q <end_of_utterance> \nAssistant:"
    assert chat.render_vlmevalkit(messages) == want
    with pytest.raises(UsageError, match="one user message"):
        chat.render_vlmevalkit([*messages, {"role": "assistant", "content": "A"}])


def test_the_template_of_a_text_processor():
    batch = tiny_processor(vision=False)(prompt="Hi")
    assert batch.text == ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]


def test_given_pictures_take_the_places_that_hold_none():
    messages = user(IMAGE, {"type": "image", "path": "own.png"}, IMAGE, text("?"))
    assert chat.fill_media(messages, "image", ["a", "b"]) == ["a", "own.png", "b"]
    assert chat.fill_media(messages, "image", ["a"]) == ["a", "own.png"]  # the count is checked later
    assert len(chat.fill_media(messages, "image", ["a", "b", "c"])) == 4
    with pytest.raises(UsageError, match="nothing is fetched"):
        chat.fill_media(user({"type": "image", "url": "https://x/y.png"}), "image", [])
