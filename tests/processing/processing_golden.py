"""What the golden files of `experiments/parity/make_processor_golden.py` hold, read back."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "golden" / "processing"


def load_golden(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.float32).tobytes()).hexdigest()


def squeeze(text: str) -> str:
    return re.sub(r"(?:<image>)+", lambda match: f"<image>*{len(match.group()) // 7}", text)
