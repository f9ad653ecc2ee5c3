"""Vectors of pictures and texts: what they are made of, and that company does not change them."""

import io
import json

import jax
import numpy as np
import pytest
from cli_calls import call

from smoljax.embedding import embed_images, embed_texts
from smoljax.errors import SmoljaxError, UsageError
from smoljax.nn.smolvlm import forward, init_params
from smoljax.processing.testing import pattern_picture, tiny_processor
from smoljax.vlm import VLM


@pytest.fixture(scope="module")
def vlm(tiny_config, tiny_params):
    return VLM(tiny_config, tiny_params, tiny_processor(), "tiny")


def reference(vlm, text, images=None):
    """The vector by its definition: the last hidden state of this very text, at unit length."""
    batch = vlm.prepare(text=text, images=images)
    run = jax.jit(lambda params, arrays: forward(vlm.config, params, arrays, logits="none").hidden)
    hidden = np.asarray(run(vlm.params, batch.arrays())[0, -1], np.float64)
    return hidden / np.linalg.norm(hidden)


def test_a_text_is_the_last_state_of_its_turn(vlm):
    found = embed_texts(vlm, ["a red circle", "it"])
    assert found.dtype == np.float32
    assert found.shape == (2, 32)
    for row, text in zip(found, ["a red circle", "it"], strict=True):
        wanted = reference(vlm, f"<|im_start|>User: {text}<end_of_utterance>")
        np.testing.assert_allclose(row, wanted, atol=2e-5)


@pytest.mark.parametrize("size", [(32, 32), (90, 40)])
def test_a_picture_is_the_last_state_of_its_turn(vlm, size):
    picture = pattern_picture(*size)
    wanted = reference(vlm, "<|im_start|>User:<image><end_of_utterance>", [picture])
    np.testing.assert_allclose(embed_images(vlm, [picture])[0], wanted, atol=2e-5)


def test_company_and_batch_size_change_nothing(vlm):
    pictures = [pattern_picture(30 + 25 * n, 40) for n in range(5)]
    together = embed_images(vlm, pictures, batch_size=3)
    alone = np.concatenate([embed_images(vlm, [picture]) for picture in pictures])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    texts = ["one", "a much longer sentence about nothing at all", "two", "three words here", "x"]
    together = embed_texts(vlm, texts, batch_size=2)
    alone = np.concatenate([embed_texts(vlm, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert np.abs(alone[0] - alone[2]).max() > 1e-2


def test_split_decides_the_tiles(vlm):
    picture = pattern_picture(90, 40)
    whole, cut = (embed_images(vlm, [picture], split=split)[0] for split in (False, True))
    assert np.abs(whole - cut).max() > 1e-3


def test_a_text_only_model_with_another_template(tiny_config):
    import dataclasses

    config = dataclasses.replace(
        tiny_config, vision=None, scale_factor=None, image_token_id=None, model_type="llama"
    )
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(1))
    vlm = VLM(config, params, tiny_processor(vision=False), "words")
    wanted = reference(vlm, "<|im_start|>user\nhello<|im_end|>")  # without the newline behind the turn
    np.testing.assert_allclose(embed_texts(vlm, ["hello"])[0], wanted, atol=2e-5)
    with pytest.raises(UsageError, match="text-only"):
        embed_images(vlm, [pattern_picture(8, 8)])


def test_what_cannot_be_embedded(vlm, tmp_path):
    assert embed_texts(vlm, []).shape == (0, 32)
    with pytest.raises(UsageError, match="text 1 is empty"):
        embed_texts(vlm, ["a", " "])
    with pytest.raises(UsageError, match="sees no picture"):
        embed_texts(vlm, ["a <image>"])
    with pytest.raises(UsageError, match="positions"):
        embed_texts(vlm, ["word " * 400])
    with pytest.raises(SmoljaxError, match=r"nothing\.png: no such picture"):
        embed_images(vlm, [tmp_path / "nothing.png"])
    broken = jax.tree.map(lambda leaf: leaf * np.nan, vlm.params)
    with pytest.raises(SmoljaxError, match="not finite"):
        embed_texts(VLM(vlm.config, broken, vlm.processor, "nan"), ["a"])


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SMOLJAX_CACHE", str(tmp_path / "cache"))
    model, out = tmp_path / "tiny", tmp_path / "v.npz"
    assert call("init", "tiny", model)[0] == 0
    pattern_picture(40, 30).save(tmp_path / "a.png")
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    args = ("embed", "-m", model, "-i", tmp_path / "a.png", "-t", "zero", "-t", "-")
    code, printed, noted = call(*args, "-o", out, "--json")
    assert code == 0
    assert "untrained" in noted
    result = json.loads(printed)
    assert result["shape"] == {"image": [1, 32], "text": [3, 32]}
    stored = np.load(out)
    np.testing.assert_allclose(result["cosine"], stored["image"] @ stored["text"].T, atol=1e-5)
    code, printed, _ = call("embed", "-m", model, "-i", tmp_path / "a.png", "-t", "zero [x]")
    assert code == 0
    assert "zero [x]" in printed
    for wrong, status, word in [
        (("-t", "a", "-o", tmp_path / "v.txt"), 2, ".npz"),
        ((), 2, "--image or --text"),
        (("-i", tmp_path / "b.png"), 1, "b.png: no such picture"),
    ]:
        code, printed, err = call("embed", "-m", model, *wrong)
        assert (code, printed) == (status, "")
        assert word in err
        assert err.count("\n") == 1
