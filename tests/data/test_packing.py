"""Rows: nothing lost, nothing over the edge, and every example found again in its row as it was."""

import numpy as np
import pytest
from data_helpers import number_record

from smoljax.data.encode import Example, encode
from smoljax.data.packing import RowShape, batch_arrays, pack
from smoljax.data.records import Record, ask
from smoljax.errors import SmoljaxError
from smoljax.processing.testing import tiny_processor


def blank(tokens, tiles=1, pair=False, fill=0):
    """An example of so many tokens; `fill` tells examples apart."""
    segments = np.zeros(tokens, np.int32)
    if pair:
        segments[-2:] = 1
    return Example(
        input_ids=np.full(tokens, fill, np.int32),
        loss_mask=np.arange(tokens) % 3 == 1,
        branch_ids=(np.arange(tokens) // 4).astype(np.int32),
        segments=segments,
        positions=np.arange(tokens, dtype=np.int32),
        pixel_values=np.full((tiles, 3, 4, 4), fill, np.float32),
        pair_image=1 if pair else -1,
        pair_text=tokens - 1 if pair else -1,
        patches={"shape": np.full(6, fill, np.int32)} if tiles == 1 else {},
    )


SHAPE = RowShape(tokens=50, tiles=4, pairs=2, tile_size=4, pad_id=9, patches={"shape": 6})


def stream(count=300, seed=0):
    rng = np.random.default_rng(seed)
    for number in range(count):
        yield blank(int(rng.integers(4, 51)), int(rng.integers(0, 4)), bool(rng.integers(2)), number + 1)


def test_every_example_is_in_one_row_and_no_row_is_too_full():
    rows = list(pack(stream(), SHAPE, window=8))
    for row in rows:
        assert row.tokens == sum(example.tokens for example in row.examples) <= 50
        assert row.tiles == sum(example.tiles for example in row.examples) <= 4
        assert sum(example.pair_image >= 0 for example in row.examples) <= 2
    found = sorted(int(example.input_ids[0]) for row in rows for example in row.examples)
    assert found == list(range(1, 301))
    assert sorted(place for row in rows for place in row.places) == list(range(300))


def test_a_wider_window_wastes_less():
    def waste(window):
        rows = list(pack((blank(example.tokens, 0) for example in stream()), SHAPE, window))
        return 1 - sum(row.tokens for row in rows) / (50 * len(rows))

    assert waste(16) < waste(1) / 2
    assert waste(16) < 0.1


def test_an_example_goes_to_the_oldest_row_with_room_and_the_fullest_is_closed():
    rows = list(pack((blank(tokens, 0) for tokens in (30, 40, 9, 45, 20, 5)), SHAPE, window=2))
    # 9 joins 30; 45 closes [40]; 20 closes [45]; 5 joins [30, 9].
    assert [[item.tokens for item in row.examples] for row in rows] == [[40], [45], [30, 9, 5], [20]]


def test_a_row_without_room_for_a_picture_does_not_block_the_window():
    shape = RowShape(tokens=50, tiles=2, pairs=0, tile_size=4, pad_id=9, patches={"shape": 6})
    rows = list(pack((blank(4 + number % 5, fill=number) for number in range(40)), shape, window=3))
    assert [len(row.examples) for row in rows] == [2] * 20
    assert all(max(row.places) < 2 * (number + 4) for number, row in enumerate(rows))
    assert all(min(row.places) >= 2 * (number - 3) for number, row in enumerate(rows))


def test_rows_hold_their_examples_unchanged():
    rows = list(pack(stream(60), SHAPE, window=4))
    batch = batch_arrays([row.examples for row in rows], SHAPE)
    assert {
        name: (value.dtype.name, value.shape[1:]) for name, value in batch.items() if name != "patches"
    } == {
        "input_ids": ("int32", (50,)),
        "loss_mask": ("bool", (50,)),
        "segment_ids": ("int32", (50,)),
        "branch_ids": ("int32", (50,)),
        "positions": ("int32", (50,)),
        "pair_image": ("int32", (2,)),
        "pair_text": ("int32", (2,)),
        "pixel_values": ("float32", (4, 3, 4, 4)),
        "tile_mask": ("bool", (4,)),
    }
    assert batch["patches"]["shape"].shape == (len(rows), 4, 6)
    for number, row in enumerate(rows):
        token = tile = pair = segment = 0
        for example in row.examples:
            here = slice(token, token + example.tokens)
            for name in ("input_ids", "loss_mask", "branch_ids", "positions"):
                assert np.array_equal(batch[name][number, here], getattr(example, name))
            own = np.unique(batch["segment_ids"][number, here])
            assert own.tolist() == [segment + 1, segment + 2][: len(own)]
            assert len(own) == (2 if example.pair_image >= 0 else 1)
            assert np.array_equal(batch["segment_ids"][number, here] - segment - 1, example.segments)
            tiles = slice(tile, tile + example.tiles)
            assert np.array_equal(batch["pixel_values"][number, tiles], example.pixel_values)
            if example.pair_image >= 0:
                assert batch["pair_image"][number, pair] == token + example.pair_image
                assert batch["pair_text"][number, pair] == token + example.pair_text
                pair += 1
            if example.tiles == 1:
                assert (batch["patches"]["shape"][number, tile] == example.input_ids[0]).all()
            token, tile, segment = here.stop, tiles.stop, segment + len(own)
        assert (batch["input_ids"][number, token:] == 9).all()
        assert not batch["segment_ids"][number, token:].any()
        assert not batch["loss_mask"][number, token:].any()
        assert batch["tile_mask"][number].tolist() == [True] * tile + [False] * (4 - tile)
        assert not batch["pixel_values"][number, tile:].any()
        assert (batch["pair_image"][number, pair:] == -1).all()


def test_tiles_stand_in_the_order_of_their_tokens():
    processor = tiny_processor()
    records = [
        number_record(1, 64, 32),
        Record("text", (), (ask("Hm?", "Hm.", 0),)),
        number_record(2, 20, 20),
    ]
    examples = [encode(record, processor) for record in records]
    shape = RowShape(sum(example.tokens for example in examples), 40, 1, 32, processor.pad_id)
    batch = batch_arrays([examples], shape)
    image = (batch["input_ids"][0] == processor.tokenizer.image_id).sum()
    assert image == 4 * batch["tile_mask"][0].sum() == 4 * (examples[0].tiles + examples[2].tiles)
    assert np.array_equal(batch["pixel_values"][0, examples[0].tiles], examples[2].pixel_values[0])


def test_a_text_only_model_gets_no_pixels():
    processor = tiny_processor(vision=False)
    example = encode(Record("text", (), (ask("Hm?", "Hm.", 0),)), processor)
    batch = batch_arrays([[example]], RowShape(200, 1, 1, 0, processor.pad_id))
    assert "pixel_values" not in batch
    assert "tile_mask" not in batch


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (blank(51), "51 tokens, more than the 50 of a row"),
        (blank(5, tiles=5), "5 tiles, more than the 4 of a row; raise max_tiles"),
        (blank(5, pair=True), "a contrastive pair, but max_pairs is 0"),
    ],
)
def test_an_example_without_a_place_is_refused(example, message):
    shape = RowShape(50, 4, 0, 4, 9, {"shape": 6})
    with pytest.raises(SmoljaxError, match=message):
        next(pack(iter([example]), shape))


def test_labels_of_two_sizes_are_refused():
    with pytest.raises(SmoljaxError, match="6 labels 'shape' but 4 in other records"):
        RowShape(50, 4, 1, 4, 9, {"shape": 4}).check(blank(5))
