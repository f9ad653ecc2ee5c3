# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One embedding space, looked at
#
# SmolVLM puts image patches and words into one space. This notebook walks through the space of one checkpoint, the
# bundled `smolvlm-nano`; give another MODEL and the same cells look at that one. Offline, about a minute on two cores.

# %%
import matplotlib.pyplot as plt
import numpy as np

import smoljax
from smoljax.analysis import geometry, lens, probes, retrieval, similarity
from smoljax.analysis.capture import capture
from smoljax.data.scenes.scene import scene

plt.rcParams["figure.dpi"] = 70
vlm = smoljax.load("smolvlm-nano")
scenes = [scene("test", index) for index in range(150)]
pictures = [drawn.paint()[0] for drawn in scenes]
captions = [drawn.captions[0] for drawn in scenes]
seen = capture(vlm, pictures, captions)
print("image tokens  [layers + 1, pictures, tokens, width]:", seen.image.shape)
print("caption words [layers + 1, words, width]:          ", seen.text.shape)

# %% [markdown]
# ## Two clouds
#
# Layer 0 is the decoder's input: image tokens as the connector makes them, words as the table holds them. On the first
# two principal components of both together:

# %%
image, words = seen.image[0].reshape(-1, seen.image.shape[-1]), seen.words[np.unique(seen.text_ids)]
rng = np.random.default_rng(0)
some = rng.permutation(len(image))[:600]
both = np.concatenate([image[some], words]).astype(float)
both -= both.mean(0)
flat = both @ np.linalg.svd(both, full_matrices=False)[2][:2].T
figure, ax = plt.subplots(figsize=(5, 4))
ax.scatter(*flat[: len(some)].T, s=6, label="image tokens")
ax.scatter(*flat[len(some) :].T, s=14, marker="x", label="words of captions")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# How far apart, layer by layer? The distance of the centroids of directions, how well a linear probe tells the two
# apart (0.5 is not at all), and how many directions the image tokens fill.

# %%
print("layer   gap  separable   rank of image tokens")
for layer in range(len(seen.image)):
    x, y = (
        seen.image[layer].reshape(-1, seen.image.shape[-1])[some].astype(float),
        seen.text[layer].astype(float),
    )
    gap = geometry.centroid_gap(x, y)["unit"]
    # Never fitted to the pictures and words that it is tested on.
    apart = geometry.separability(x, y, some // seen.image.shape[2], seen.text_ids)
    print(f"{layer:5d} {gap:5.2f} {apart:10.3f} {geometry.effective_rank(x):22.1f}")

# %% [markdown]
# ## Which words is a patch near?
#
# Three lenses. *Input*: the nearest row of the word table. *Logit*: what the output head reads off a hidden state.
# *Contextual* (LatentLens): the nearest hidden state of a word in a real caption, at the same layer.

# %%
tokenizer = vlm.require_processor().tokenizer
last = len(seen.image) - 1
side = round(seen.image.shape[2] ** 0.5)


def name(ids):
    return [tokenizer.decode([int(i)]).strip() or "·" for i in ids]


def shown(index):
    normed = seen.normed(last, vlm.config.text.rms_norm_eps)[index]
    top = lens.nearest_rows(normed, seen.head, 1, "dot")[:, 0]
    near = seen.text_ids[lens.nearest_rows(seen.image[last, index], seen.text[last], 1)[:, 0]]
    return {
        "input: nearest row": lens.nearest_rows(seen.image[0, index], seen.words, 1)[:, 0],
        f"logit, layer {last}": top,
        f"contextual, layer {last}": near,
    }


figure, axes = plt.subplots(2, 3, figsize=(10, 6.8))
for line, index in zip(axes, (1, 3), strict=True):
    for ax, (title, ids) in zip(line, shown(index).items(), strict=True):
        ax.imshow(pictures[index], alpha=0.6)
        for spot, word in enumerate(name(ids)):
            y, x = (np.array(divmod(spot, side)) + 0.5) * 96 / side
            ax.text(x, y, word[:9], fontsize=6, ha="center", va="center", rotation=25)
        ax.set(xticks=[], yticks=[], title=title)
plt.show()

# %% [markdown]
# ## What can be read off linearly
#
# A linear probe, fitted on half of the pictures and tested on the others: in which row and column of the picture does a
# token lie? The connector keeps places that no word ever named.

# %%
tokens = seen.image.shape[2]
groups = np.repeat(np.arange(len(pictures)), tokens)
place = np.tile(np.arange(tokens), len(pictures))
for layer in (0, last):
    x = seen.image[layer].reshape(-1, seen.image.shape[-1])
    row, column = (probes.probe_accuracy(x, labels, groups) for labels in (place // side, place % side))
    print(
        f"layer {layer}: row {row['accuracy']:.2f}, column {column['accuracy']:.2f}, chance {row['majority']:.2f}"
    )

# %% [markdown]
# ## Do a picture and its caption go together?
#
# The mean image token and the mean word of the caption (which never sees the picture): are they alike across 150 pairs,
# by debiased CKA, by common neighbours, and does one find the other? Each beside its null, where pairs are shuffled.

# %%
print("layer     CKA (95 % of null)   neighbours (null)   R@1 picture → caption")
for layer in range(len(seen.image)):
    pooled = seen.pooled(layer)
    cka = similarity.calibrated(similarity.debiased_cka, *pooled, shuffles=50)
    knn = similarity.calibrated(similarity.mutual_knn, *pooled, shuffles=50)
    found = retrieval.pooled_retrieval(*pooled)["image_to_text_r1"]
    print(
        f"{layer:5d} {cka.value:7.2f} ({cka.null_high:4.2f}) {knn.value:16.2f} ({knn.null_mean:.2f}) {found:17.2f}"
    )

# %% [markdown]
# ## Where to go on
#
# - [embedding_sharing.md](../docs/embedding_sharing.md): the same measurements over a grid of ways to share the space.
# - [your_connector.md](../docs/your_connector.md): a way of your own, in one file.
# - `python -m experiments.embedding_sharing.measure MODEL --out row.json`: every measurement of any checkpoint.
