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
# # A vision-language model, trained from nothing in two minutes
#
# This notebook goes the whole way that `smolvlm-nano`, the model in this repository, has gone, with everything
# made small:
#
# 1. pictures with words, and what becomes of them in a batch,
# 2. a patch encoder that learns what it looks at,
# 3. the whole model, which learns to describe, answer and point; stopped in the middle, and resumed,
# 4. the loss, drawn from the file that every run leaves,
# 5. questions to the trained model, about pictures it knows and about new ones.
#
# It needs no network and no accelerator. It teaches a **very** small model 64 pictures, so expect a model that
# gets to know these and nothing else; the last part measures just that. The same code with more pictures, more
# width and three hours of time gives a model that sees: `experiments/scenes/`.

# %%
import dataclasses
import json
import logging
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

import smoljax
from smoljax import presets
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.data.scenes import open_scenes
from smoljax.evaluation.config import EvalConfig
from smoljax.evaluation.run import evaluate
from smoljax.models import enable_compilation_cache
from smoljax.training.config import (
    CheckpointConfig,
    Contrastive,
    Dense,
    ModelConfig,
    NextToken,
    OptimizerConfig,
    TrainConfig,
)
from smoljax.training.run import train

_ = enable_compilation_cache()  # compiled programs are kept, so the second run of this notebook is quicker
logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS would tell which picture decoder it takes
runs = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The pictures
#
# `scenes` is drawn by the project itself: shapes, colours, textures and printed words on eight backgrounds, with
# everything there is to say about them. The full data set has 60,000 training pictures; `scenes/tiny` has 64.

# %%
examples = open_scenes("tiny").as_data_source("train")
fig, axes = plt.subplots(1, 4, figsize=(9, 2.6), dpi=80)
for axis, example in zip(axes, (examples[i] for i in range(4)), strict=True):
    axis.imshow(example["image"])
    for x0, y0, x1, y1 in example["objects"]["box"]:
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="white", linewidth=1.2))
    axis.axis("off")
plt.show()
for index in range(4):
    print(f"{index}: {examples[index]['captions'][0].decode()}")

# %% [markdown]
# Each picture also comes with questions and their answers. These of the first:

# %%
asked = examples[0]["questions"]
for question, answer in list(zip(asked["question"], asked["answer"], strict=True))[:6]:
    print(f"{question.decode():52} {answer.decode()}")

# %% [markdown]
# A *mapping* turns such an example into a `Record`: pictures, and conversations about them. It draws other questions
# each epoch. In the answer to "Locate …", `<loc_0>` to `<loc_31>` are tokens of the vocabulary: four of them are a box.

# %%
from smoljax.data.sources import open_source

source = open_source("tfds:scenes/tiny:train", caption=True, questions=2, boxes=1)
for user, assistant in source[0].conversations:
    print(f"{user['content'][-1]['text']:40} {assistant['content'][-1]['text']}")

# %% [markdown]
# ## A config
#
# A run is a tree of frozen dataclasses. The model has all parts of SmolVLM (a SigLIP patch encoder, pixel shuffle,
# a Llama decoder) at a width of 64: a vocabulary of 768 tokens, one tile of 96 pixels, 36 image tokens.
#
# **Stage 1 is for the eyes alone.** A model that has to learn to see and to speak at the same time gets stuck for long:
# words can be learned without looking, and until the patch encoder tells a circle from a square, looking does not
# pay. So the encoder gets a few hundred steps first in which a linear classifier on each 8×8 patch has to say what lies
# there: which shape, which colour, which size, texture and printed character. (`Dense` says which labels, and how many
# classes each has.)

# %%
architecture = presets.smolvlm_nano(vision_width=64, text_width=64, vision_layers=3, text_layers=3)
repository = Path(smoljax.__file__).parents[1]
processor = str(repository / "experiments/scenes/processor")  # tokenizer and picture settings
labels = (
    ("object_shape", 9),
    ("object_colour", 9),
    ("object_size", 3),
    ("object_texture", 4),
    ("character", 37),
)


def pictures(split, tokens, **options):
    """Batches of 8 pictures of scenes/tiny."""
    scenes = SourceConfig(f"tfds:scenes/tiny:{split}", options=options)
    return DataConfig((scenes,), batch_size=8, sequence_length=tokens, loss_on="answers", fit=True)


see = TrainConfig(
    name="see",
    model=ModelConfig(architecture, processor, scan_layers=True),
    data=pictures("train", 44, caption=False, questions=0, boxes=0, dense=True),
    objectives=(Dense(labels),),
    steps=400,
    optimizer=OptimizerConfig(lr=3e-3, warmup_steps=40, decay="linear", final_lr=0.1),
    checkpoint=CheckpointConfig(every=200, keep_best=0),
    log_every=10,
)
seen = train(see, runs / "see", show=False)  # show=True (the default) draws a progress bar
print(f"{seen.step} steps, loss {seen.loss:.3f}, finished: {seen.finished}")
print("left behind:", ", ".join(sorted(path.name for path in seen.workdir.iterdir())))

# %% [markdown]
# `model` is a checkpoint that every command and `smoljax.load` take; `checkpoints` holds what a run needs to go on
# (parameters, optimizer, random numbers, the place in the data); `metrics.jsonl` has a line every `log_every` steps.

# %%


def metrics(folder):
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


for line in (metrics(runs / "see")[0], metrics(runs / "see")[-1]):
    print(f"step {line['step']}: right on patches that show something:")
    print("   ", {name: round(line[f"dense_{name}"], 2) for name, _ in labels})

# %% [markdown]
# ## Stage 2: see and speak
#
# The second run starts from the first one's model and trains all of it. Three objectives are added up:
#
# - `NextToken`: the usual one, on the answers' tokens alone;
# - `Contrastive`: the vector of a picture and the vector of its caption shall be alike, and unlike those of the others
#   in the batch; this is what `smoljax embed` uses;
# - `Dense` goes on with a little weight, so that the encoder does not forget.
#
# All conversations about a picture share one row: its 36 image tokens stand there once, each conversation sees them and
# itself, none sees another.
#
# The run is **stopped halfway** (`stop_after`; SIGTERM or Ctrl-C do the same).

# %%
talk = dataclasses.replace(
    see,
    name="talk",
    model=ModelConfig(start=str(runs / "see" / "model"), scan_layers=True),
    data=pictures("train", 224, caption=True, questions=10, boxes=2, contrastive=True, dense=True),
    objectives=(NextToken(), Contrastive(weight=0.1, kind="infonce"), Dense(labels, weight=0.3)),
    steps=500,
    validation=pictures("validation", 224, caption=True, questions=10, boxes=2, contrastive=True, dense=True),
    validate_every=50,
    validation_batches=2,
)
half = train(talk, runs / "talk", show=False, stop_after=250)
print(f"{half.step} steps, loss {half.loss:.3f}, finished: {half.finished}")

# %% [markdown]
# To **resume** is to make the same call again. The run finds its last checkpoint and goes on with the very next batch;
# on a CPU, what comes out has the same bits as a run that was never stopped (a test kills runs to make sure). Were the
# config another one, the folder would be refused.

# %%
done = train(talk, runs / "talk", show=False)
print(f"{done.step} steps, loss {done.loss:.3f}, finished: {done.finished}")
try:
    train(dataclasses.replace(talk, seed=1), runs / "talk", show=False)
except smoljax.UsageError as error:
    print("refused:", str(error).split(" holds ")[1])

# %% [markdown]
# ## The loss

# %%
lines = metrics(runs / "talk")
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), dpi=80)
for kind, style in (("train", "-"), ("validation", "o-")):
    points = [(line["step"], line["loss_next_token"]) for line in lines if line["kind"] == kind]
    left.plot(*zip(*points, strict=True), style, label=kind, markersize=3)
left.axvline(half.step, color="grey", linestyle=":", label="stopped and resumed")
left.set(xlabel="step", ylabel="nats a token of an answer", title="next token")
left.legend()
for name, _ in labels:
    first = [(line["step"], line[f"dense_{name}"]) for line in metrics(runs / "see")]
    second = [(see.steps + line["step"], line[f"dense_{name}"]) for line in lines if line["kind"] == "train"]
    right.plot(*zip(*first, *second, strict=True), label=name.removeprefix("object_"))
right.axvline(see.steps, color="grey", linestyle=":")
right.set(xlabel="step of both stages", ylabel="share right", title="what patches show (training pictures)")
right.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# On the left, the validation loss parts from the training loss early and rises again: with 64 pictures the model learns
# the pictures, not the seeing. The remedy is not fewer steps but more pictures; a data set that is drawn has as many as
# one likes. On the right, the fall in the middle is no forgetting: the linear classifiers belong to the objective and
# not to the model, so the second run begins with new ones.
#
# ## Ask it
#
# On the left a picture that it was trained on, on the right one that it has never seen.

# %%
vlm = smoljax.load(done.model)
new = open_scenes("tiny").as_data_source("test")
fig, axes = plt.subplots(1, 2, figsize=(5, 2.6), dpi=80)
for axis, example, title in zip(axes, (examples[0], new[0]), ("known", "new"), strict=True):
    axis.imshow(example["image"])
    axis.set_title(title)
    axis.axis("off")
    print(f"{title}: {example['captions'][0].decode()}")
    print(f"   it says: {vlm.generate('Describe the picture.', example['image'], max_new_tokens=80)}")
    asked = example["questions"]
    for question, answer in list(zip(asked["question"], asked["answer"], strict=True))[:5]:
        said = vlm.generate(question.decode(), example["image"], max_new_tokens=8)
        print(f"   {question.decode():52} {said:12} (right: {answer.decode()})")
plt.show()

# %% [markdown]
# A handful of answers proves nothing. `evaluate` (on the command line: `smoljax eval`) asks all questions of a split
# and gives each figure with its 95 % interval. Here: the training pictures, new pictures, and the training pictures all
# grey, which shows how far mere guessing gets.

# %%
for name, split, config in (
    ("known pictures", "train", EvalConfig(limit=16)),
    ("new pictures", "test", EvalConfig()),
    ("known pictures, all grey", "train", EvalConfig(limit=16, blind=True)),
):
    result = evaluate(vlm, f"tfds:scenes/tiny:{split}", "vqa", config)
    exact = result.metrics["exact"]
    print(f"{name:26}{exact.value:6.1%} right ({exact.low:.1%} to {exact.high:.1%}) of {exact.n} questions")

# %% [markdown]
# The gap between the first two lines is overfitting, plain to see: about new pictures this model knows no more than can
# be guessed from the question. `smolvlm-nano` is the same recipe with 60,000 pictures in place of 64, and it answers
# questions about new pictures.
#
# ## Where to go next
#
# - [docs/training.md](../docs/training.md): everything a config can say: learning rates by part, freezing,
#   accumulation, averaging, several devices, guards, distillation; and fine-tuning a model on your own pictures.
# - [docs/data.md](../docs/data.md): your own `.jsonl` file or data set.
# - `experiments/scenes/`: the configs of the bundled model: `smoljax train experiments/scenes/dense.py`.
