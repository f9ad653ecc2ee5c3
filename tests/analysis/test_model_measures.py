"""Measures that need a model: each against the model itself, asked in another way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoljax
from smoljax.analysis import changes, cost, forced, gradients
from smoljax.analysis.capture import capture
from smoljax.data.encode import encode
from smoljax.data.packing import RowShape, batch_arrays
from smoljax.data.records import Record, ask
from smoljax.errors import UsageError
from smoljax.nn.adapt import adapt
from smoljax.nn.smolvlm import SmolVLM, abstract_params, count_params, forward
from smoljax.sharing import SharingConfig
from smoljax.training.objectives.next_token import next_token_sums, shift

TEXTS = ["red", "a blue ring", "two"]


@pytest.fixture(scope="module")
def vlm(tiny_folder):
    return smoljax.load(tiny_folder, dtype="float32")


@pytest.fixture(scope="module")
def pictures():
    return list(np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8))


@pytest.fixture(scope="module")
def batch(vlm, pictures):
    """Two rows: a picture with two questions, and one with one."""
    processor = vlm.require_processor()
    talks = [(ask("How many?", "two"), ask("Red?", "no")), (ask("Which?", "blue"),)]
    records = [Record(str(i), (pictures[i],), talks[i]) for i in range(2)]
    encoded = [[encode(record, processor, loss_on="answers", split=False)] for record in records]
    shape = RowShape(96, 1, 1, processor.config.image.tile_size, processor.pad_id)
    return {name: value for name, value in batch_arrays(encoded, shape).items() if name != "patches"}


@pytest.fixture(scope="module")
def seen(vlm, pictures):
    return capture(vlm, pictures, TEXTS, batch_size=2)


def test_captured_image_tokens_are_the_models_own(vlm, pictures, seen):
    L, Q, D = vlm.config.text.num_layers, vlm.config.image_seq_len, vlm.config.text.hidden_size
    assert seen.image.shape == (L + 1, 3, Q, D)
    fed = vlm.prepare(text="<image>", images=[pictures[2]], split=False, longest_edge=32).arrays()
    features, _ = SmolVLM(vlm.config).apply(
        {"params": vlm.params}, jnp.asarray(fed["pixel_values"]), method=SmolVLM.encode_images
    )
    np.testing.assert_allclose(seen.image[0, 2], features[0, 0], atol=1e-5)


def test_captured_words_are_the_texts_and_rows_of_the_table(vlm, seen):
    tokenizer = vlm.require_processor().tokenizer
    table = np.asarray(vlm.params["embedding"]["table"])
    np.testing.assert_array_equal(seen.words, table)
    np.testing.assert_allclose(seen.text[0], table[seen.text_ids], atol=1e-6)
    for number, text in enumerate(TEXTS):
        own = seen.text_ids[seen.text_items == number]
        assert tokenizer.decode(own.tolist()).strip() == text


def test_a_text_of_one_token_is_found():
    nano = smoljax.load("smolvlm-nano", dtype="float32")
    picture = np.zeros((96, 96, 3), np.uint8)
    found = capture(nano, [picture], ["red", "small green"], batch_size=2)
    words = [nano.require_processor().tokenizer.decode([int(i)]).strip() for i in found.text_ids]
    assert words == ["red", "small", "green"]


def test_pooled_and_logits_by_hand(vlm, seen):
    image, text = seen.pooled(1)
    np.testing.assert_allclose(image[1], seen.image[1, 1].mean(0), rtol=1e-5)
    np.testing.assert_allclose(text[1], seen.text[1][seen.text_items == 1].mean(0), rtol=1e-4, atol=1e-6)
    # On the last layer they are the model's own logits.
    eps = vlm.config.text.rms_norm_eps
    hidden = seen.image[-1, 0]
    normed = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + eps) * seen.norm
    logits = SmolVLM(vlm.config).apply({"params": vlm.params}, jnp.asarray(normed), method=SmolVLM.logits)
    np.testing.assert_allclose(seen.normed(-1, eps)[0] @ seen.head.T, logits, atol=1e-4)


def test_a_crossing_model_has_image_tokens_at_the_input_only(vlm, pictures):
    config, params = adapt(vlm.config, vlm.params, sharing=SharingConfig(image_attention="cross"))
    found = capture(
        dataclasses.replace(vlm, config=config, weights=jax.tree.map(jnp.asarray, params), shapes=None),
        pictures,
        TEXTS,
    )
    assert found.image.shape[0] == 1
    with pytest.raises(UsageError, match="at least one"):
        capture(vlm, [], TEXTS)


@pytest.mark.slow
def test_forced_answers_are_right_exactly_where_greedy_decoding_is(vlm, batch):
    learned, right, loss = forced.forced_answers(vlm.config, vlm.params, batch)
    talks = forced.conversations(learned, right, loss, batch["segment_ids"], batch["branch_ids"])
    assert [len(row) for row in talks] == [2, 1]
    ids = np.array(batch["input_ids"])
    # Put what the model would say, token by token, in the place of every answer: then all are right.
    for _ in range(12):
        out = forward(vlm.config, vlm.params, fed({**batch, "input_ids": ids})).logits
        best = np.asarray(out.argmax(-1))
        targets = np.roll(ids, -1, axis=1)
        wrong = learned & (best != targets)
        if not wrong.any():
            break
        for row in range(len(ids)):
            for place in np.flatnonzero(wrong[row])[:1]:
                ids[row, place + 1] = best[row, place]
    told = {**batch, "input_ids": ids}
    again = forced.forced_answers(vlm.config, vlm.params, told)
    rows = forced.conversations(*again, batch["segment_ids"], batch["branch_ids"])
    assert all(whole for row in rows for whole, _, _ in row)
    place = np.flatnonzero(learned[0])[-1] + 1
    ids[0, place] = (ids[0, place] + 1) % 290
    broken = forced.forced_answers(vlm.config, vlm.params, told)
    rows = forced.conversations(*broken, batch["segment_ids"], batch["branch_ids"])
    assert [whole for row in rows for whole, _, _ in row].count(False) == 1
    total = sum(lost for row in rows for _, lost, _ in row)
    np.testing.assert_allclose(total, broken[2][broken[0]].sum(), rtol=1e-5)


def fed(batch):
    names = ("input_ids", "tile_mask", "positions", "branch_ids", "segment_ids", "pixel_values")
    given = {name: jnp.asarray(batch[name]) for name in names}
    return given | {"attention_mask": given["segment_ids"] > 0}


def test_changes_do_what_they_are_called():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 5, 4)))
    key, shift_by = jax.random.key(0), jnp.arange(4.0)
    found = {name: change(features, key, shift_by) for name, change in changes.CHANGES.items()}
    np.testing.assert_array_equal(found["none"], features)
    np.testing.assert_array_equal(found["swap"][1], features[0])
    np.testing.assert_allclose(
        found["average"], jnp.broadcast_to(features.mean(2, keepdims=True), features.shape)
    )
    np.testing.assert_allclose(
        found["move"] - features, jnp.broadcast_to(shift_by, features.shape), atol=1e-6
    )
    order = lambda x: jnp.sort(x[..., 0], axis=-1)  # noqa: E731
    np.testing.assert_array_equal(order(found["shuffle"]), order(features))
    assert (found["shuffle"] != features).any()


def test_a_changed_picture_changes_answers_only_through_its_tokens(vlm, batch):
    swapped = forced.forced_answers(vlm.config, vlm.params, batch, change="swap")[2]
    by_hand = {**batch, "pixel_values": np.roll(batch["pixel_values"], 1, axis=0)}
    np.testing.assert_allclose(swapped, forced.forced_answers(vlm.config, vlm.params, by_hand)[2], atol=1e-4)


@pytest.mark.parametrize("connector", ["linear", "word_mixture"])
def test_the_ways_of_the_gradient_add_up_to_the_tied_tables(vlm, batch, connector):
    config, params = adapt(vlm.config, vlm.params, sharing=SharingConfig(connector), tie="table")
    params = jax.tree.map(jnp.asarray, params)
    split = gradients.gradient_split(config, params, batch)

    def loss(table):
        own = {**params, "embedding": {"table": table}}
        hidden = forward(config, own, fed(batch), logits="none").hidden
        targets, learned = shift(batch["input_ids"], batch["loss_mask"], batch["positions"])
        weights = learned.reshape(-1).astype(jnp.float32)
        total = next_token_sums(hidden.reshape(-1, hidden.shape[-1]), table, targets.reshape(-1), weights)[0]
        return total / weights.sum()

    whole = np.asarray(jax.grad(loss)(params["embedding"]["table"]))
    np.testing.assert_allclose(sum(split.values()), whole, atol=1e-5)
    assert bool(np.any(split["image"])) == (connector == "word_mixture")
    unread = np.setdiff1d(np.arange(config.text.vocab_size), batch["input_ids"])
    assert not split["input"][unread].any()  # words that nobody reads get nothing from the input
    assert split["output"][unread].any()  # but every word is scored
    summary = gradients.split_summary(split, {"unread": unread})
    assert summary["by_class"]["unread"]["input"] == 0
    assert summary["norm"]["output"] == pytest.approx(float(np.linalg.norm(split["output"])))


def test_cost_counts_parameters_and_grows_with_the_batch(vlm, batch):
    found = cost.cost(vlm.config, batch)
    assert found["parameters"] == count_params(abstract_params(vlm.config))[1]
    assert found["parameters"] == sum(value for key, value in found.items() if key.startswith("parameters_"))
    twice = {name: np.concatenate([value, value]) for name, value in batch.items()}
    assert cost.cost(vlm.config, twice)["flops"] == pytest.approx(2 * found["flops"], rel=0.02)
    crossed = dataclasses.replace(vlm.config, sharing=SharingConfig(image_attention="cross"))
    assert cost.cost(crossed, batch)["flops"] > 1.1 * found["flops"]
