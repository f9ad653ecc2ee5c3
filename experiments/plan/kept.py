"""Where compiled programs are kept between calls: by what was compiled, and by the code that it was compiled from."""

import hashlib
import json
from pathlib import Path

from experiments.commands import ROOT
from smoljax.training.config import TrainConfig
from smoljax.training.config_file import as_json

COMPILED = ROOT / "runs" / "plan"
PAGE = ROOT / "docs" / "plan.md"
# What the compiled program comes from; the predictor, which only reads it, is left out.
SOURCES = ("ops", "nn", "training", "plan/compile.py")


def kept_name(name: str, config: TrainConfig) -> str:
    """A file name that another config or other code does not have."""
    digest = hashlib.sha256(json.dumps(as_json(config), sort_keys=True).encode())
    for source in SOURCES:
        path = Path(ROOT, "smoljax", source)
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return f"{name}-{digest.hexdigest()[:12]}.json.gz"
