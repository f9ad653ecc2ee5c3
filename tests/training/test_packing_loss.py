"""Packed rows and branches cost what their samples cost apart."""

import jax
import pytest

from smoljax.data.encode import encode
from smoljax.data.packing import RowShape, batch_arrays, pack
from smoljax.data.records import Record, ask
from smoljax.processing.testing import pattern_picture, tiny_processor
from smoljax.training.config import NextToken
from smoljax.training.objectives.table import count, sums
from smoljax.training.step import look

SHAPE = RowShape(tokens=160, tiles=3, pairs=0, tile_size=32, pad_id=0)
WORDS = ("a pattern", "40 pixels", "no, not at all", "yes")


@pytest.fixture(scope="module")
def loss_of(tiny_config, tiny_params):
    """Σ −log p over the learned tokens of a batch, and their number."""
    objective = NextToken(chunk=64)

    @jax.jit
    def run(batch):
        return sums(objective, {}, look(tiny_config, tiny_params, batch), batch)[0], count(objective, batch)

    def loss(examples_of_rows):
        total, number = run(batch_arrays(examples_of_rows, SHAPE))
        return float(total), int(number)

    return loss


def examples_of(records, loss_on="smolvlm2"):
    return [encode(record, tiny_processor(), split=False, loss_on=loss_on) for record in records]


def test_packed_rows_give_the_loss_of_their_samples_apart(loss_of):
    records = [
        Record(str(n), (pattern_picture(40 + n, 30),) * (n % 3), (ask("What is it?", WORDS[n % 4], n % 3),))
        for n in range(9)
    ]
    examples = examples_of(records)
    rows = [row.examples for row in pack(iter(examples), SHAPE)]
    assert len(rows) < 6
    together = loss_of(rows)
    apart = [loss_of([[example]]) for example in examples]
    assert together[1] == sum(number for _, number in apart) > 50
    assert together[0] == pytest.approx(sum(total for total, _ in apart), rel=1e-5)
    # Attention across samples would show: the same tokens as one segment cost something else.
    batch = batch_arrays(rows, SHAPE)
    assert (batch["segment_ids"].max(axis=1) > 1).all()


def test_branches_of_one_picture_give_the_loss_of_its_chats_apart(loss_of):
    picture = pattern_picture(40, 30)
    talks = tuple(ask(f"Question {n}?", words) for n, words in enumerate(WORDS[:3]))
    apart = examples_of([Record(str(n), (picture,), (talk,)) for n, talk in enumerate(talks)], "answers")
    (together,) = examples_of([Record("one", (picture,), talks)], "answers")
    found = loss_of([[together]])
    each = [loss_of([[example]]) for example in apart]
    assert found[1] == sum(number for _, number in each) > 20
    assert found[0] == pytest.approx(sum(total for total, _ in each), rel=1e-5)
    assert together.tokens < sum(example.tokens for example in apart)
