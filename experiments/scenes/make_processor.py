"""Makes `experiments/scenes/processor`: the vocabulary of the small models, learned from training scenes.

    python -m experiments.scenes.make_processor

The same scenes give the same bytes.
"""

from pathlib import Path

from smoljax.data.mappings import CAPTION_PROMPTS
from smoljax.data.scenes import scene
from smoljax.processing.vocabulary import train_vocabulary, vocabulary_files

FOLDER = Path(__file__).parent / "processor"
SCENES = 6000
SIZE, LOCATIONS, TILE, IMAGE_TOKENS = 768, 32, 96, 36
# Enough of other English for the merges that scenes alone cannot fill.
EXTRA = Path(__file__).with_name("words.txt")


def texts():
    """What is said of the first training scenes, as it stands in a chat, and some other English."""
    yield from ("User: Assistant:", "\nAssistant: ", "Locate the ") * 200
    for index in range(SCENES):
        found = scene("train", index)
        yield from found.captions
        yield CAPTION_PROMPTS[index % len(CAPTION_PROMPTS)]
        for item in found.questions:
            yield item.question
            yield f" {item.answer}"
    yield from EXTRA.read_text().splitlines()


def main() -> None:
    tokenizer = train_vocabulary(texts(), SIZE, LOCATIONS)
    FOLDER.mkdir(exist_ok=True)
    for name, content in vocabulary_files(tokenizer, tile_size=TILE, image_seq_len=IMAGE_TOKENS).items():
        (FOLDER / name).write_bytes(content)
    print(f"{FOLDER}: {SIZE} tokens")


if __name__ == "__main__":
    main()
