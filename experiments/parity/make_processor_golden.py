"""Makes tests/golden/processing from the PyTorch reference: what default tests compare with, without torch.

    python experiments/parity/make_processor_golden.py pictures
    python experiments/parity/make_processor_golden.py videos

`pictures` needs torch and transformers. `videos` also needs torchvision, best in an environment of its own:

    python -m venv /tmp/tv
    /tmp/tv/bin/pip install torch==2.13.0 transformers==5.23.0 num2words pillow jinja2
    /tmp/tv/bin/pip install --no-deps torchvision==0.28.0
    PYTHONPATH=. /tmp/tv/bin/python experiments/parity/make_processor_golden.py videos

All processors are the toy one of `smoljax.processing.testing` (the released tokenizer is too big to commit)
with the released sizes where the case says so.
"""

import argparse
import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from smoljax.processing import testing

OUT = Path(__file__).parents[2] / "tests" / "golden" / "processing"

SIZES = [(1, 1), (1, 5000), (5000, 1), (386, 512), (512, 512), (513, 512), (512, 513), (1024, 768)]
SIZES += [(4000, 3000), (3000, 4000), (2048, 1000), (1000, 2049), (100, 80), (640, 480), (33, 34), (31, 97)]
SETTINGS: dict[str, dict[str, Any]] = {
    "tiny": {"tile_size": 32, "longest_edge": 128, "image_seq_len": 4},
    "256M": {"tile_size": 512, "longest_edge": 2048, "image_seq_len": 64},
    "2.2B": {"tile_size": 384, "longest_edge": 1536, "image_seq_len": 81},
}
MODES = ["RGB", "L", "1", "P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]

IMAGE: dict[str, Any] = {"type": "image"}
TEXT: dict[str, Any] = {"type": "text", "text": "A 1"}
CHATS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": [{"type": "text", "text": "Was ist 12 + 30?\n\nBitte."}]}],
    "image first": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "Describe."}]}],
    "image last": [{"role": "user", "content": [{"type": "text", "text": "Describe: "}, IMAGE]}],
    "two images": [{"role": "user", "content": [IMAGE, IMAGE, {"type": "text", "text": "Compare 你好 😀."}]}],
    "interleaved": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [TEXT, IMAGE, TEXT, IMAGE]},
        {"role": "assistant", "content": [{"type": "text", "text": " Yes."}]},
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "And this?"}]},
    ],
}
CHAT_SIZES = [(50, 20), (20, 20), (30, 90)]

VIDEO_TOTALS = (1, 2, 3, 29, 30, 31, 90, 700, 1999, 1980, 2040, 5000)
VIDEO_CASES = [(total, fps) for total in VIDEO_TOTALS for fps in (1, 24, 29.97)]
# frames, height, width, frames a second
VIDEO_ARRAYS = {"wide": (7, 24, 50, 3.0), "high": (5, 90, 40, 1.0), "square": (4, 32, 32, 2.0)}


def squeeze(text: str) -> str:
    """`<image>` repeated 4 times → `<image>*4`, to keep the files small."""
    return re.sub(r"(?:<image>)+", lambda match: f"<image>*{len(match.group()) // 7}", text)


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.float32).tobytes()).hexdigest()


def video_array(name: str) -> tuple[np.ndarray, float]:
    frames, height, width, fps = VIDEO_ARRAYS[name]
    pictures = [np.asarray(testing.pattern_picture(width + i, height))[:, i:] for i in range(frames)]
    return np.stack(pictures), fps


def write(name: str, data: Any) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def make_pictures() -> None:
    import PIL
    import transformers

    versions = {"transformers": transformers.__version__, "pillow": PIL.__version__}
    golden: dict[str, Any] = {"versions": versions}
    with tempfile.TemporaryDirectory() as scratch:
        processors = {}
        for name, setting in SETTINGS.items():
            folder = Path(scratch) / name
            testing.tiny_processor(video=False, **setting).save(folder)
            processors[name] = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    golden["grids"] = []
    for name, reference in processors.items():
        for width, height in SIZES:
            out = reference.image_processor(
                testing.pattern_picture(width, height, "L"), return_row_col_info=True, return_tensors="np"
            )
            grid = [out["rows"][0][0], out["cols"][0][0], out["pixel_values"].shape[1]]
            golden["grids"].append([name, width, height, *grid])
    tiny = processors["tiny"]
    golden["pixels"] = []
    for mode in MODES:
        for width, height in [(1, 1), (47, 20), (20, 47), (300, 301), (1, 200)]:
            image = testing.pattern_picture(width, height, mode)
            out = tiny.image_processor(image)
            golden["pixels"].append([mode, width, height, "split", digest(out["pixel_values"])])
        out = tiny.image_processor(testing.pattern_picture(47, 20, mode), do_image_splitting=False)
        golden["pixels"].append([mode, 47, 20, "whole", digest(out["pixel_values"])])
    golden["chats"] = {}
    for name, messages in CHATS.items():
        count = sum(item["type"] == "image" for message in messages for item in message["content"])
        images = [testing.pattern_picture(*size) for size in CHAT_SIZES[:count]]
        text = tiny.apply_chat_template(messages, add_generation_prompt=True)
        out = tiny(text=text, **({"images": images} if images else {}))
        ids = list(out["input_ids"][0])
        text = squeeze(tiny.tokenizer.decode(ids))
        golden["chats"][name] = {"messages": messages, "text": text, "ids": ids}
    chats = [CHATS["image first"], CHATS["two images"]]
    golden["batch"] = {}
    for side in ("left", "right"):
        out = tiny(
            text=[tiny.apply_chat_template(chat, add_generation_prompt=True) for chat in chats],
            images=[[testing.pattern_picture(*size) for size in CHAT_SIZES[:count]] for count in (1, 2)],
            padding=True,
            padding_side=side,
            return_tensors="np",
        )
        golden["batch"][side] = {
            "ids": digest(out["input_ids"]),
            "mask": digest(out["attention_mask"]),
            "pixels": digest(out["pixel_values"]),
            "tile_mask": np.asarray(out["pixel_attention_mask"])[..., 0, 0].tolist(),
        }
    write("pictures.json", golden)


def make_videos() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision
    except RuntimeError:  # a build for other hardware: its operators are not there, and none is needed
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    import transformers
    from transformers.video_utils import VideoMetadata

    golden: dict[str, Any] = {
        "versions": {
            "transformers": transformers.__version__,
            "torchvision": torchvision.__version__,
            "torch": torch.__version__,
        }
    }
    with tempfile.TemporaryDirectory() as scratch:
        testing.tiny_processor().save(scratch)
        reference = transformers.AutoProcessor.from_pretrained(scratch)
    golden["indices"] = []
    for total, fps in VIDEO_CASES:
        metadata = VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps)
        indices = [int(index) for index in reference.video_processor.sample_frames(metadata)]
        golden["indices"].append([total, fps, indices])
    golden["prompts"], arrays = {}, {}
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]}]
    text = reference.apply_chat_template(messages, add_generation_prompt=True)
    for name in VIDEO_ARRAYS:
        array, fps = video_array(name)
        metadata = [{"total_num_frames": len(array), "fps": fps, "duration": len(array) / fps}]
        out = reference(
            text=text, videos=[array], video_metadata=metadata, do_sample_frames=True, return_tensors="np"
        )
        golden["prompts"][name] = squeeze(reference.decode(out["input_ids"][0]))
        arrays[name] = np.round(out["pixel_values"][0] * 127.5 + 127.5).astype(np.uint8)
    write("videos.json", golden)
    np.savez_compressed(OUT / "videos.npz", **arrays)


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("what", choices=["pictures", "videos"])
    {"pictures": make_pictures, "videos": make_videos}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
