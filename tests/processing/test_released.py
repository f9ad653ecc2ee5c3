"""The released small models' processor, made from SmolLM2's tokenizer, against published values."""

import numpy as np
import pytest
from PIL import Image

from smoljax.errors import SmoljaxError
from smoljax.models import load_processor
from smoljax.processing.processor import Processor
from smoljax.processing.released import extend_tokenizer, processor_files, vlm_tokens
from smoljax.processing.testing import tiny_processor


@pytest.fixture(scope="module")
def processor(smollm2):
    base = load_processor(smollm2).files["tokenizer.json"]
    return Processor.from_files(
        processor_files(base, tile_size=512, longest_edge=2048, image_seq_len=64, video=False)
    )


def test_the_reference_vector(processor):
    # Published independently, and run with the reference: 100×80 pixels, "Can you describe this image?".
    picture = Image.fromarray(np.zeros((80, 100, 3), np.uint8))
    batch = processor(prompt="Can you describe this image?", images=[picture])
    plan = processor.tile_plan(100, 80)
    assert plan.resized == (2048, 1638)
    assert (batch.grids[0], batch.tiles[0], batch.image_tokens[0]) == ([(4, 4)], 17, 1088)
    ids = batch.input_ids[0].tolist()
    assert len(ids) == 1141
    assert ids[:5] == [1, 11126, 42, 49189, 49153]
    assert ids[-8:] == [451, 2443, 47, 49279, 198, 9519, 9531, 42]


def test_published_ids(processor):
    tokenizer = processor.tokenizer
    assert tokenizer.encode("Hello, world!") == [19556, 28, 905, 17]
    assert tokenizer.encode("\n\n") == [1116]
    assert tokenizer.encode("a\n\nb") == [81, 198, 198, 82]
    assert tokenizer.image_id == 49190
    assert tokenizer.token_id("<fake_token_around_image>") == 49189
    assert tokenizer.token_id("<global-img>") == 49152
    assert tokenizer.token_id("<row_6_col_6>") == 49188
    assert processor.stop_ids == (49279,)


def test_128_tokens_behind_the_base_vocabulary():
    assert len(vlm_tokens()) == len(set(vlm_tokens())) == 128


def test_another_tokenizer_is_refused():
    with pytest.raises(SmoljaxError, match="49152"):
        extend_tokenizer(tiny_processor().files["tokenizer.json"])
