"""Records as arrays: the reference's labels, branches equal to chats of their own, pairs, one-line errors."""

import numpy as np
import pytest
from data_helpers import number_record, png, scenes_example

from smoljax.data.encode import encode
from smoljax.data.mappings import scenes_record
from smoljax.data.records import Record, ask
from smoljax.data.transcript import transcript, user_turn
from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing import Processor
from smoljax.processing.testing import pattern_picture, tiny_files, tiny_processor

CHAT = (
    {"role": "system", "content": "Be brief: System: and User: are words."},
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What is it? "}, {"type": "image"}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "A café, 12 cats."}]},
    {"role": "user", "content": [{"type": "text", "text": "Are you sure?"}]},
    {"role": "assistant", "content": "Yes.\n"},
)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def chat():
    return Record("chat", (pattern_picture(30, 20), pattern_picture(90, 50)), (CHAT,))


def reference_labels(ids, tokenizer):
    """The rule of SmolVLM2's training code on ids alone: mask from "System:" or "User:" to the turn's end."""
    end = tokenizer.token_id("<end_of_utterance>")
    learned = np.ones(len(ids), bool)
    for opening in (tokenizer.encode("System:"), tokenizer.encode("User:")):
        for start in range(len(ids)):
            if ids[start : start + len(opening)] == opening:
                learned[start : ids.index(end, start)] = False
    names = ["<image>", "<global-img>", "<fake_token_around_image>"]
    names += [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    return learned & ~np.isin(ids, [tokenizer.token_id(name) for name in names])


def test_tokens_and_labels_are_those_of_the_reference(processor, chat):
    example = encode(chat, processor)
    want = processor(messages=chat.conversations[0], images=chat.images, add_generation_prompt=False)
    assert example.input_ids.tolist() == want.input_ids[0].tolist()
    assert np.array_equal(example.pixel_values, want.pixel_values[0])
    ids = example.input_ids.tolist()
    assert example.loss_mask[1:].tolist() == reference_labels(ids, processor.tokenizer)[1:].tolist()
    assert not example.loss_mask[0]
    assert example.positions.tolist() == list(range(len(ids)))
    assert not example.branch_ids.any()
    assert not example.segments.any()
    learned = processor.tokenizer.decode(example.input_ids[example.loss_mask], skip_special=False)
    turn = "<end_of_utterance>\n"
    assert learned == f"{turn}{turn}Assistant: A café, 12 cats.{turn}{turn}Assistant: Yes.\n{turn}"


def test_answers_between_pictures_are_learned(processor):
    first, second = ask("One?", "A first."), ask("Two?", "A second.")
    record = Record("two", (png(60, 20), png(20, 90)), (first + second, first + ask("Three?", "A third.")))
    single = encode(Record("two", record.images, record.conversations[:1]), processor, loss_on="answers")
    learned = processor.tokenizer.decode(single.input_ids[single.loss_mask], skip_special=False)
    assert learned == " A first.<end_of_utterance> A second.<end_of_utterance>"
    both = encode(record, processor, loss_on="answers")
    learned = processor.tokenizer.decode(both.input_ids[both.loss_mask], skip_special=False)
    assert learned == " A first.<end_of_utterance> A second.<end_of_utterance> A third.<end_of_utterance>"
    want = processor(messages=record.conversations[0], images=record.images, add_generation_prompt=False)
    assert both.input_ids[both.branch_ids < 2].tolist() == want.input_ids[0].tolist()


def test_answers_learn_the_words_and_their_end(processor, chat):
    example = encode(chat, processor, loss_on="answers")
    learned = processor.tokenizer.decode(example.input_ids[example.loss_mask], skip_special=False)
    assert learned == " A café, 12 cats.<end_of_utterance> Yes.\n<end_of_utterance>"


def test_each_branch_is_what_its_chat_is_alone(processor):
    record = scenes_record(scenes_example(), questions=3)
    example = encode(record, processor)
    assert len(record.conversations) == 5
    assert example.branch_ids.max() == 5
    for branch, talk in enumerate(record.conversations, 1):
        alone = encode(Record("alone", record.images, (talk,)), processor)
        seen = (example.branch_ids == 0) | (example.branch_ids == branch)
        assert example.input_ids[seen].tolist() == alone.input_ids.tolist()
        assert example.positions[seen].tolist() == alone.positions.tolist()
        assert example.loss_mask[seen].tolist() == alone.loss_mask.tolist()
        assert np.array_equal(example.pixel_values, alone.pixel_values)
    # What comes right before a target in the array is what comes before it in its chat.
    targets = np.flatnonzero(example.loss_mask)
    assert (example.positions[targets] == example.positions[targets - 1] + 1).all()


@pytest.mark.parametrize("conversations", [0, 1, 3])
def test_a_pair_ends_the_picture_and_the_caption(processor, conversations):
    talks = tuple(ask(f"{number}?", "yes") for number in range(conversations))
    record = Record("pair", (png(),), talks, caption="Two red cats.")
    example = encode(record, processor)
    tokenizer = processor.tokenizer
    end = tokenizer.token_id("<end_of_utterance>")
    trunk = example.branch_ids == 0
    first = processor(text="<|im_start|>User:<image><end_of_utterance>", images=[png()]).input_ids[0].tolist()
    seen = ((trunk & (example.segments == 0)) | (example.branch_ids == 1)).nonzero()[0]
    assert example.input_ids[seen].tolist() == first
    assert seen[-1] == example.pair_image
    assert example.input_ids[example.pair_image] == end
    caption = example.segments == 1
    text = "<|im_start|>User: Two red cats.<end_of_utterance>"
    assert example.input_ids[caption].tolist() == tokenizer.encode(text)
    assert example.positions[caption].tolist() == list(range(caption.sum()))
    assert example.pair_text == caption.nonzero()[0][-1]
    assert not example.loss_mask[caption].any()
    assert not example.loss_mask[example.pair_image]
    assert example.loss_mask.any() == (conversations > 0)


@pytest.mark.parametrize("caption", [None, "Two red cats."])
def test_fitting_leaves_out_the_conversations_that_no_longer_fit(processor, caption):
    talks = tuple(ask("Why?", "so " * count) for count in (2, 30, 3, 1))
    pictures = (pattern_picture(32, 32),)
    options = {"longest_edge": 32}
    whole = Record("whole", pictures, (talks[0], talks[2], talks[3]), caption=caption)
    whole = encode(whole, processor, **options)
    record = Record("fit", pictures, talks, caption=caption)
    fitted = encode(record, processor, max_length=whole.tokens, fit=True, **options)
    for name in ("input_ids", "positions", "loss_mask", "segments", "pair_image", "pair_text"):
        assert np.array_equal(getattr(fitted, name), getattr(whole, name)), name
    together = fitted.branch_ids[:, None] == fitted.branch_ids
    assert np.array_equal(together, whole.branch_ids[:, None] == whole.branch_ids)
    with pytest.raises(SmoljaxError, match=r"fit: .* more than the"):
        encode(record, processor, max_length=whole.tokens, **options)
    with pytest.raises(SmoljaxError, match=r"fit: .* more than the 20 of a row"):
        encode(record, processor, max_length=20, fit=True, **options)


def test_a_caption_without_picture_makes_no_pair(processor):
    example = encode(Record("text", (), (ask("Hello?", "Hi.", pictures=0),), caption="No."), processor)
    assert example.pair_image == example.pair_text == -1
    assert example.pixel_values.shape == (0, 3, 32, 32)
    assert not example.segments.any()


def test_chats_without_pictures_are_branches_without_trunk(processor):
    talks = (ask("One?", "1", pictures=0), ask("Two?", "2", pictures=0))
    example = encode(Record("text", (), talks), processor)
    assert set(example.branch_ids.tolist()) == {1, 2}
    assert (example.positions[example.branch_ids == 2][0], example.branch_ids[0]) == (0, 1)
    assert example.loss_mask.any()


def test_chatml_learns_the_same_parts():
    example = encode(
        Record("text", (), (ask("Two?", "2", pictures=0),)), tiny_processor(vision=False), loss_on="smolvlm2"
    )
    tokenizer = tiny_processor(vision=False).tokenizer
    learned = tokenizer.decode(example.input_ids[example.loss_mask], skip_special=False)
    assert learned == "<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    example = encode(
        Record("text", (), (ask("Two?", "2", pictures=0),)), tiny_processor(vision=False), loss_on="answers"
    )
    assert tokenizer.decode(example.input_ids[example.loss_mask], skip_special=False) == "2<|im_end|>"


def test_a_template_that_changes_texts_is_rendered_whole():
    plain = tiny_processor().config.chat_template or ""
    strips = plain.replace("line['text']}}", "line['text'] | trim | upper}}")
    assert strips != plain
    messages = ask(" is it? ", " yes ", pictures=0)
    found = transcript(strips, {}, messages, "answers")
    assert found.text == "<|im_start|>User: IS IT?<end_of_utterance>\nAssistant: YES<end_of_utterance>\n"
    assert [found.text[a:b] for a, b in found.learned] == [" YES<end_of_utterance>"]
    assert user_turn(strips, {}, " a b ") == "<|im_start|>User: A B<end_of_utterance>"
    same = transcript(plain, {}, messages, "answers")
    assert [same.text[a:b] for a, b in same.learned] == ["  yes <end_of_utterance>"]


def test_dense_labels_go_along_row_by_row(processor):
    example = encode(scenes_record(scenes_example(), dense=True), processor, split=False)
    assert example.patches["object_shape"].shape == (144,)
    assert example.patches["object_shape"].reshape(12, 12)[2, 1] == 1
    with pytest.raises(SmoljaxError, match=r"scene-0: patch labels belong to a single tile, but .* make 17"):
        encode(scenes_record(scenes_example(), dense=True), processor)


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        (number_record(7), {"max_length": 20}, r"record-7: \d+ tokens .* more than the 20 of a row"),
        (Record("r", (), ()), {}, "r: no conversation and no picture"),
        (Record("r", ("gone.png",), (ask("?", "!"),)), {}, "r: gone.png: no such picture"),
        (Record("r", (png(),), (ask("?", "!"), CHAT[3:])), {}, "r: its conversations do not begin alike"),
        (Record("r", (png(),), (ask("?", "!", 0),)), {}, r"r: no .* item for its 1 picture"),
    ],
)
def test_what_cannot_be_encoded_is_named(processor, record, options, message):
    with pytest.raises(SmoljaxError, match=message):
        encode(record, processor, **options)


def test_a_base_model_and_an_unknown_rule_are_refused(processor):
    files = {name: data for name, data in tiny_files().items() if name != "chat_template.json"}
    base = Processor.from_files(files)
    assert base.config.chat_template is None
    with pytest.raises(UsageError, match="no chat template"):
        encode(number_record(1), base)
    with pytest.raises(UsageError, match="loss_on is 'all'; known: smolvlm2, answers"):
        encode(number_record(1), processor, loss_on="all")
