"""How the processor compares with the PyTorch reference's, on random pictures and prompts.

Every case draws pictures (1 to 5000 pixels a side, every Pillow mode, as objects, arrays and files, EXIF
orientations), a conversation in random Unicode and options (longest edge, no split), runs both processors and
compares token ids, pixels and masks. One Markdown row a setting:

    python experiments/parity/processor_reference.py --processors FOLDER --n 300

FOLDER holds the released processor files (one folder a checkpoint, tokenizer.json beside them or in each).
Without it the toy tokenizer of `smoljax.processing.testing` stands in. Needs `pip install torch transformers
num2words`; for videos see `make_processor_golden.py`.

The reference's tokenizer is made to obey `tokenizer.json`: transformers 5 rebuilds a `GPT2Tokenizer` with a
pre-tokeniser of its own and loses the file's `Digits` step, so that "\\n\\n1" no longer begins with the token
for two newlines. The released models were trained with the file as it is. The last column
counts the cases where the unmended `AutoTokenizer` differs from the file; `Tokenizer.like_transformers_5`
must equal it in every case.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tokenizers
from PIL import Image

from smoljax.processing import Processor, Tokenizer, testing

# Not La and LAB: Pillow cannot make them RGB, so both sides refuse them.
MODES = ["RGB", "RGB", "RGB", "L", "L", "P", "P-transparent", "1", "RGBA", "LA", "CMYK", "YCbCr", "HSV"]
MODES += ["I", "I;16", "F", "RGBX", "PA", "RGBa"]
FORMATS = {
    "RGB": ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM"),
    "L": ("JPEG", "PNG", "TIFF"),
    "P": ("PNG", "GIF"),
}
FORMATS |= {
    "1": ("PNG", "TIFF"),
    "RGBA": ("PNG", "WEBP"),
    "LA": ("PNG",),
    "CMYK": ("JPEG", "TIFF"),
    "I;16": ("PNG",),
}
ALPHABETS = ((32, 127), (0xA0, 0x250), (0x400, 0x500), (0x600, 0x700), (0x3040, 0x30FF), (0x4E00, 0x5000))
ALPHABETS += ((0xAC00, 0xAD00), (0x1F300, 0x1F650), (0x1D400, 0x1D500), (48, 58), (9, 14))


@dataclass
class Setting:
    """One row: a processor folder for both sides, and what was seen."""

    name: str
    folder: Path
    cases: int = 0
    pictures: int = 0
    tiles: int = 0
    id_mismatches: int = 0
    auto_mismatches: int = 0
    mask_mismatches: int = 0
    largest_error: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return (
            not (self.id_mismatches or self.mask_mismatches or self.failures) and self.largest_error <= 1e-6
        )


def random_picture(rng: np.random.Generator, largest: int) -> tuple[Any, Any]:
    """A picture as our processor takes it, and the same one as the reference takes it."""
    width, height = (int(np.exp(rng.uniform(0, np.log(largest + 1)))) for _ in range(2))
    if rng.random() < 0.1:
        width, height = rng.choice([1, largest, 512, 513, 511, 384, 385, 2048], size=2).tolist()
    width, height = max(1, min(width, largest)), max(1, min(height, largest))
    image = picture_of_mode(rng, str(rng.choice(MODES)), width, height)
    kind = rng.random()
    if kind < 0.35:
        formats = FORMATS.get(image.mode, ())
        if formats and "transparency" not in image.info:
            data = io.BytesIO()
            form = str(rng.choice(formats))
            exif = Image.Exif()
            if form in ("JPEG", "PNG", "WEBP", "TIFF") and rng.random() < 0.5:
                # Pillow 13.0 scrambles a memory-mapped TIFF that lies on its side (orientation 5 to 8), and
                # the reference with it; ours reads bytes, which does not.
                exif[0x0112] = int(rng.integers(1, 5 if form == "TIFF" else 9))
            image.save(data, form, **({"exif": exif} if len(exif) else {}))
            with tempfile.NamedTemporaryFile(suffix=f".{form.lower()}", delete=False) as file:
                file.write(data.getvalue())
            return file.name, file.name
    array = np.asarray(image)
    if (
        kind > 0.85 and image.mode in ("RGB", "RGBA") and height not in (1, 3, 4)
    ):  # the reference would guess CHW
        return array, array
    return image, image


def picture_of_mode(rng: np.random.Generator, mode: str, width: int, height: int) -> Image.Image:
    noise = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if rng.random() < 0.5:  # smooth, like a photo
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 4), dtype=np.uint8))
        noise = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    rgb = Image.fromarray(np.ascontiguousarray(noise[..., :3]))
    if mode in ("I", "F", "I;16"):
        dtype = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        return Image.fromarray(noise[..., 0].astype(dtype))
    if mode == "P-transparent":
        image = rgb.quantize(16)
        image.info["transparency"] = int(rng.integers(0, 16))
        return image
    if mode in ("RGBA", "LA", "PA", "RGBa"):
        image = Image.fromarray(np.ascontiguousarray(noise))
        return (
            image
            if mode == "RGBA"
            else image.convert("LA").convert(mode)
            if mode == "PA"
            else image.convert(mode)
        )
    return rgb if mode == "RGB" else rgb.quantize(64) if mode == "P" else rgb.convert(mode)


def random_text(rng: np.random.Generator) -> str:
    pieces = []
    for _ in range(int(rng.integers(1, 8))):
        low, high = ALPHABETS[int(rng.integers(len(ALPHABETS)))]
        pieces.append("".join(map(chr, rng.integers(low, high, int(rng.integers(1, 12))))))
        pieces.append(str(rng.choice(["", " ", "  ", "\n", "\n\n", "'s ", ", 2024: "])))
    return "".join(pieces)


def random_messages(rng: np.random.Generator, pictures: int) -> list[dict[str, Any]]:
    """A conversation with that many image items, in one or more user turns."""
    items: list[dict[str, Any]] = [{"type": "image"}] * pictures
    items += [{"type": "text", "text": random_text(rng)} for _ in range(int(rng.integers(1, 4)))]
    items = [items[index] for index in rng.permutation(len(items))]
    messages = [{"role": "user", "content": items}]
    if rng.random() < 0.3:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": random_text(rng)}]})
    if rng.random() < 0.3:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": random_text(rng)}]})
        messages.append({"role": "user", "content": [{"type": "text", "text": random_text(rng)}]})
    return messages


def reference_processor(folder: Path) -> Any:
    """The reference with its PIL backend and the file's own pre-tokeniser."""
    processor = _processor(folder)
    file = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    processor.tokenizer.backend_tokenizer.pre_tokenizer = file.pre_tokenizer
    return processor


def _processor(folder: Path) -> Any:
    """SmolVLM's video half, which needs torchvision, is left out."""
    import transformers
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

    settings = json.loads((folder / "processor_config.json").read_text())
    if settings["processor_class"] == "Idefics3Processor":
        return transformers.AutoProcessor.from_pretrained(folder, backend="pil")

    class PicturesOnly(SmolVLMProcessor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name != "video_processor":
                super().check_argument_for_proper_class(argument_name, argument)

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    return PicturesOnly(
        SmolVLMImageProcessorPil.from_pretrained(folder),
        tokenizer,
        SimpleNamespace(num_frames=64, fps=1, model_input_names=[]),
        image_seq_len=settings["image_seq_len"],
        chat_template=template,
    )


@dataclass
class Unmended:
    """The reference's tokenizer as `AutoTokenizer` loads it, and ours told to split text the same way."""

    reference: Any
    ours: Tokenizer | None  # None for the toy vocabulary, which AutoTokenizer loads as it is


def compare_case(
    setting: Setting, ours: Processor, theirs: Any, auto: "Unmended", rng: np.random.Generator, largest: int
) -> None:
    assert ours.config.image is not None
    tile = ours.config.image.tile_size
    count = int(rng.choice([0, 1, 2, 3], p=[0.05, 0.8, 0.1, 0.05]))
    pairs = [random_picture(rng, largest) for _ in range(count)]
    messages = random_messages(rng, count)
    edge, split = None, None
    if rng.random() < 0.4:
        edge = int(rng.choice([tile, 2 * tile, 3 * tile, int(rng.integers(1, 3 * tile))]))
    if rng.random() < 0.15:
        split = False
    options: dict[str, Any] = {} if edge is None else {"size": {"longest_edge": edge}}
    options |= {} if split is None else {"do_image_splitting": split}
    text = theirs.apply_chat_template(messages, add_generation_prompt=True)
    pictures = {"images": [pair[1] for pair in pairs], **options} if pairs else {}
    want = theirs(text=text, return_tensors="np", **pictures)
    got = ours(messages=messages, images=[pair[0] for pair in pairs], longest_edge=edge, split=split)
    check(setting, want, got.arrays())
    unmended = auto.reference(got.text[0])["input_ids"]
    setting.auto_mismatches += unmended != got.input_ids[0].tolist()
    if auto.ours is not None and unmended != auto.ours.encode(got.text[0]):
        setting.failures.append("like_transformers_5 differs from AutoTokenizer")
    setting.pictures += count
    for pair in pairs:
        if isinstance(pair[0], str):
            Path(pair[0]).unlink()


def check(setting: Setting, want: Any, got: dict[str, np.ndarray]) -> None:
    """Adds one comparison to `setting`."""
    setting.cases += 1
    if not (
        np.array_equal(want["input_ids"], got["input_ids"])
        and np.array_equal(np.asarray(want["attention_mask"], bool), got["attention_mask"])
    ):
        setting.id_mismatches += 1
    if ("pixel_values" in want) != ("pixel_values" in got):
        setting.failures.append("only one side has pixels")
        return
    if "pixel_values" not in want:
        return
    pixels, mask = np.asarray(want["pixel_values"]), np.asarray(want["pixel_attention_mask"], bool)
    setting.tiles += int(got["tile_mask"].sum())
    if pixels.shape != got["pixel_values"].shape:
        setting.failures.append(f"pixels {got['pixel_values'].shape} instead of {pixels.shape}")
        return
    setting.largest_error = max(setting.largest_error, float(np.abs(pixels - got["pixel_values"]).max()))
    if not (mask == got["tile_mask"][:, :, None, None]).all():
        setting.mask_mismatches += 1


def compare_batch(setting: Setting, ours: Processor, theirs: Any, rng: np.random.Generator) -> None:
    """Three rows with one to three pictures each, padded on the left and on the right."""
    assert ours.config.image is not None
    edge = 3 * ours.config.image.tile_size
    counts = [1, 3, 2]
    pictures = [[random_picture(rng, 600)[0] for _ in range(count)] for count in counts]
    chats = [random_messages(rng, count) for count in counts]
    texts = [theirs.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    samples = [{"messages": chat, "images": row} for chat, row in zip(chats, pictures, strict=True)]
    for side in ("left", "right"):
        want = theirs(
            text=texts,
            images=pictures,
            padding=True,
            padding_side=side,
            return_tensors="np",
            size={"longest_edge": edge},
        )
        got = ours.batch(samples, padding_side=side, longest_edge=edge)  # type: ignore[arg-type]
        check(setting, want, got.arrays())


def settings_from(processors: Path | None, scratch: Path) -> Iterator[Setting]:
    """The folders to compare, completed in `scratch`."""
    if processors is None:
        for name, video in (("toy, Idefics3", False), ("toy, SmolVLM", True)):
            folder = scratch / name.replace(", ", "-")
            testing.tiny_processor(video=video).save(folder)
            yield Setting(name, folder)
        return
    shared = processors / "tokenizer.json"
    for source in sorted(item for item in processors.iterdir() if item.is_dir()):
        files = {item.name: item.read_bytes() for item in source.iterdir() if item.is_file()}
        if "tokenizer.json" not in files:
            files["tokenizer.json"] = shared.read_bytes()
        name = source.name.replace("-500M", "").removesuffix("-Instruct").removesuffix("-Video")
        yield _write(Setting(name, scratch / name), files)
        big = _edited(
            files,
            "preprocessor_config.json",
            size={"longest_edge": 1536},
            max_image_size={"longest_edge": 384},
        )
        big = _edited(big, "processor_config.json", image_seq_len=81)
        if "SmolVLM2" in name:
            yield _write(Setting("2.2B-like (1536/384/81)", scratch / "big2"), big)
        else:
            yield _write(Setting("2.2B v1-like (no row tokens)", scratch / "big1"), first_vocabulary(big))


def _write(setting: Setting, files: dict[str, bytes]) -> Setting:
    setting.folder.mkdir(parents=True)
    for name, data in files.items():
        (setting.folder / name).write_bytes(data)
    return setting


def _edited(files: dict[str, bytes], name: str, **changes: Any) -> dict[str, bytes]:
    return {**files, name: json.dumps({**json.loads(files[name]), **changes}).encode()}


def first_vocabulary(files: dict[str, bytes]) -> dict[str, bytes]:
    """The 49155 tokens of the first 2.2B: only three tokens after the text vocabulary, none for rows."""
    data = json.loads(files["tokenizer.json"])
    keep = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    entries = {item["content"]: item for item in data["added_tokens"]}
    text = [item for item in data["added_tokens"] if item["id"] < 49152]
    data["added_tokens"] = text + [
        {**entries[token], "id": 49152 + index} for index, token in enumerate(keep)
    ]
    model = {key: value for key, value in data["model"]["vocab"].items() if value < 49152}
    data["model"]["vocab"] = model
    settings = json.loads(files["tokenizer_config.json"])
    settings["added_tokens_decoder"] = {
        str(item["id"]): {key: value for key, value in item.items() if key != "id"}
        for item in data["added_tokens"]
    }
    generation = {"bos_token_id": 0, "eos_token_id": 49154, "pad_token_id": 2}
    return {
        **files,
        "tokenizer.json": json.dumps(data, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "generation_config.json": json.dumps(generation).encode(),
    }


def run(
    processors: Path | None, n: int, batches: int, largest: int, seed: int, log: Callable[[str], None] = print
) -> list[Setting]:
    """Compares `n` cases a setting."""
    import transformers

    done = []
    with tempfile.TemporaryDirectory() as scratch:
        for setting in settings_from(processors, Path(scratch)):
            ours, theirs = Processor.from_folder(setting.folder), reference_processor(setting.folder)
            loaded = transformers.AutoTokenizer.from_pretrained(setting.folder)
            rebuilt = type(loaded).__name__ == "GPT2Tokenizer"
            auto = Unmended(loaded, ours.tokenizer.like_transformers_5() if rebuilt else None)
            for index in range(n):
                compare_case(setting, ours, theirs, auto, np.random.default_rng((seed, index)), largest)
                if index % 50 == 49:
                    log(f"{setting.name}: {index + 1}/{n}, largest error {setting.largest_error:g}")
            for index in range(batches):
                compare_batch(setting, ours, theirs, np.random.default_rng((seed, 10**6 + index)))
            done.append(setting)
    return done


def versions() -> str:
    import PIL
    import transformers

    found = {"transformers": transformers, "Pillow": PIL, "tokenizers": tokenizers}
    return ", ".join(f"{name} {module.__version__}" for name, module in found.items())


def main() -> int:
    import sys

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processors", type=Path, help="folder with the released processor files")
    parser.add_argument("--n", type=int, default=300, help="cases a setting")
    parser.add_argument("--batches", type=int, default=5, help="batches a setting, each padded on both sides")
    parser.add_argument("--largest", type=int, default=5000, help="pixels of the longest side drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of Markdown rows")
    args = parser.parse_args()
    done = run(
        args.processors,
        args.n,
        args.batches,
        args.largest,
        args.seed,
        lambda line: print(line, file=sys.stderr),
    )
    if args.json:
        rows = [{**vars(item), "folder": item.folder.name, "passed": item.passed} for item in done]
        print(json.dumps({"versions": versions(), "seed": args.seed, "rows": rows}))
    else:
        print(
            "| processor | cases | pictures (tiles) | ids differ | largest pixel error | versions "
            "| AutoTokenizer differs |\n|---|---|---|---|---|---|---|"
        )
        for item in done:
            print(
                f"| {item.name} | {item.cases} | {item.pictures} ({item.tiles}) | {item.id_mismatches} "
                f"| {item.largest_error:g} | {versions()} | {item.auto_mismatches} |"
            )
            for failure in (
                *item.failures,
                *([f"{item.mask_mismatches} masks differ"] * bool(item.mask_mismatches)),
            ):
                print(f"  {failure}")
    return 0 if all(item.passed for item in done) else 1


if __name__ == "__main__":
    raise SystemExit(main())
