"""The table of names: counts, shapes against the modules, aliases, both directions."""

import numpy as np
import pytest
from convert_helpers import Folder, flat, random_checkpoint, tiny_text

from smoljax import presets
from smoljax.convert import names
from smoljax.convert.checkpoint import iterate_leaves
from smoljax.convert.hf import load_hf
from smoljax.errors import SmoljaxError
from smoljax.nn.smolvlm import abstract_params

COUNTS = {
    "smolvlm-256m": (471, 256_484_928),
    "smolvlm2-256m": (471, 256_484_928),
    "smolvlm-500m": (489, 507_482_304),
    "smolvlm2-500m": (489, 507_482_304),
    "smolvlm-2.2b": (657, None),
    "smolvlm2-2.2b": (657, None),
    "granite-docling-258m": (470, None),
    "smollm2-135m": (272, 134_515_008),
    "smollm2-360m": (290, 361_821_120),
    "smollm2-1.7b": (218, 1_711_376_384),
}


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_table_matches_the_modules(name):
    config = presets.get(name)
    entries = names.expand(config)
    modules = {path: leaf.shape for path, leaf in iterate_leaves(abstract_params(config))}
    assert {entry.ours: entry.our_shape for entry in entries} == modules
    assert len({entry.torch for entry in entries}) == len(entries)
    if name in COUNTS:
        tensors, parameters = COUNTS[name]
        assert len(entries) == tensors
        assert parameters is None or sum(int(np.prod(e.shape)) for e in entries) == parameters


@pytest.mark.parametrize("entry", names.expand(presets.tiny()), ids=lambda e: e.torch)
def test_layouts_invert(entry):
    array = np.arange(np.prod(entry.shape)).reshape(entry.shape)
    ours = names.to_ours(array, entry)
    assert ours.shape == entry.our_shape
    np.testing.assert_array_equal(names.to_torch(ours, entry), array)


def test_patch_kernel_rows_are_channel_row_column():
    entry = names.expand(presets.tiny())[0]
    array = np.random.default_rng(0).standard_normal(entry.shape)
    ours = names.to_ours(array, entry)
    p = entry.shape[-1]
    assert ours[(2 * p + 3) * p + 1, 5] == array[5, 2, 3, 1]


def mlx(name: str) -> str:
    name = name.removeprefix("model.").replace("text_model.", "language_model.", 1)
    return "language_model.lm_head.weight" if name == "lm_head.weight" else name


@pytest.mark.parametrize(
    "rename",
    [
        lambda n: n.removeprefix("model."),
        lambda n: n.replace("model.text_model.", "model.text_model.model.", 1),
        mlx,
        lambda n: mlx(n).replace("language_model.layers", "language_model.model.layers"),
        lambda n: n.replace("model.vision_model.", "vision_tower.vision_model.", 1),
        lambda n: n.replace("model.vision_model.", "vision_tower.", 1),
    ],
)
def test_aliases_of_a_whole_model(folder: Folder, rename):
    before = flat(load_hf(folder.path).params)
    folder.rename(rename)
    after = load_hf(folder.path)
    assert before == flat(after.params)


@pytest.mark.parametrize(
    "rename", [lambda n: n.removeprefix("model."), lambda n: n.replace("model.", "model.text_model.", 1)]
)
def test_aliases_of_a_text_model(make_folder, rename):
    folder = make_folder(tiny_text())
    assert "model.layers.0.mlp.up_proj.weight" in folder.tensors()
    before = flat(load_hf(folder.path).params)
    folder.rename(rename)
    assert before == flat(load_hf(folder.path).params)


def test_a_bare_llama_beside_a_vision_part_is_not_the_text_model(folder: Folder):
    folder.rename(lambda n: n.replace("model.text_model.", "model.", 1))
    with pytest.raises(SmoljaxError, match="missing") as error:
        load_hf(folder.path)
    assert "left over model.layers.2.mlp.up_proj.weight" in str(error.value)


def test_channels_last_patch_kernel(folder: Folder):
    before = flat(load_hf(folder.path).params)
    tensors = folder.tensors()
    name = "model.vision_model.embeddings.patch_embedding.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].transpose(0, 2, 3, 1))
    folder.write(tensors)
    after = load_hf(folder.path)
    assert before == flat(after.params)
    assert "channels last" in after.notes[0]


def test_decoupled_rows_are_appended(folder: Folder):
    before = flat(load_hf(folder.path).params)
    tensors = folder.tensors()
    for name, extra in (
        ("model.text_model.embed_tokens.weight", "model.text_model.embed_tokens.additional_embedding.weight"),
        ("lm_head.weight", "lm_head.additional_fc.weight"),
    ):
        tensors[name], tensors[extra] = tensors[name][:310], tensors[name][310:]
    folder.write(tensors)
    folder.edit_config(lambda c: c["text_config"].update(vocab_size=310, additional_vocab_size=10))
    after = load_hf(folder.path)
    assert before == flat(after.params)
    assert after.config == presets.tiny()
    assert any("appended" in note for note in after.notes)


def test_buffers_are_skipped(folder: Folder):
    tensors = folder.tensors()
    tensors["model.text_model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    tensors["model.vision_model.embeddings.position_ids"] = np.arange(16)
    folder.write(tensors)
    loaded = load_hf(folder.path)
    assert loaded.num_tensors == len(tensors) - 2
    assert sum("buffer" in note for note in loaded.notes) == 2


@pytest.mark.parametrize("keep", ["lm_head.weight", "model.text_model.embed_tokens.weight"])
@pytest.mark.parametrize("stated", [True, None])
def test_tied_with_one_table(make_folder, keep, stated):
    config = presets.tiny(tie_embeddings=True)
    folder = make_folder(config)
    tensors = folder.tensors()
    table = tensors.pop("model.text_model.embed_tokens.weight")
    folder.write({**tensors, keep: table})
    folder.edit_config(lambda c: c.update(tie_word_embeddings=stated))
    loaded = load_hf(folder.path)
    assert loaded.config == config
    np.testing.assert_array_equal(loaded.params["embedding"]["table"], table)
    assert "head" not in loaded.params["embedding"]


def test_tied_with_two_equal_tables_is_tied_and_with_two_others_is_not(make_folder):
    folder = make_folder(presets.tiny(tie_embeddings=True))
    tensors = folder.tensors()
    table = tensors["model.text_model.embed_tokens.weight"]
    folder.write({**tensors, "lm_head.weight": table})
    assert load_hf(folder.path).config.tie_embeddings
    folder.write({**tensors, "lm_head.weight": -table})
    loaded = load_hf(folder.path)
    assert not loaded.config.tie_embeddings
    assert any("untied" in note for note in loaded.notes)
    np.testing.assert_array_equal(loaded.params["embedding"]["head"], -table)


def test_untied_without_head_is_missing(folder: Folder):
    tensors = folder.tensors()
    del tensors["lm_head.weight"]
    folder.write(tensors)
    with pytest.raises(SmoljaxError, match=r"missing lm_head\.weight \[320, 32\]"):
        load_hf(folder.path)


def test_difference_lists_both_directions():
    lines = names.difference(
        {"a": (1,), "b": (2,), "c": (3,)}, {"b": (2,), "c": (4,), "d": (5,)}, ["x and y both mean z"]
    )
    assert [line.split()[0] for line in lines] == ["missing", "left", "mis-shaped", "duplicate"]


def test_random_checkpoint_is_what_the_table_says():
    checkpoint = random_checkpoint()
    assert checkpoint.num_tensors == len(names.expand(checkpoint.config))
