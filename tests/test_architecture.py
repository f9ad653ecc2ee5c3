"""The floors of docs/architecture.md: no import points up, heavy packages are imported in functions only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "smoljax"
ALLOWED = {
    "errors": set(),
    "sharing": {"errors"},
    "config": {"errors", "sharing"},
    "presets": {"errors", "config"},
    "paths": set(),
    "ops": {"config"},
    "nn": {"errors", "sharing", "config", "ops"},
    "processing": {"errors"},
    "convert": {"errors", "sharing", "config", "nn", "processing", "smoljax"},
    "generation": {"errors", "config", "ops", "nn"},
    "serving": {"errors", "processing", "generation"},
    "vlm": {"errors", "config", "nn", "processing", "generation", "serving"},
    "export": {"errors", "config", "ops", "nn", "processing", "generation", "convert", "vlm", "smoljax"},
    "hub": {"errors", "paths", "convert"},
    "models": {"errors", "config", "paths", "nn", "processing", "convert", "hub", "vlm"},
    "untrained": {"errors", "config", "presets", "nn", "processing", "convert", "models"},
    "data": {"errors", "paths", "processing"},
    "training": {"errors", "sharing", "config", "ops", "nn", "processing", "data", "convert", "models"},
    "embedding": {"errors", "config", "nn", "processing", "generation", "vlm"},
    "grounding": {"errors", "config", "ops", "nn", "processing", "generation", "vlm"},
    "evaluation": {"errors", "config", "paths", "nn", "processing", "generation", "data", "convert"}
    | {"vlm", "models", "embedding", "grounding", "training"},
    "analysis": {"errors", "config", "nn", "processing", "generation", "vlm", "evaluation", "training"},
    "interop": {"errors", "config", "nn"},
    "platform": set(),
    "bench": {"errors", "nn", "processing", "convert", "generation", "vlm", "hub", "models", "untrained"}
    | {"training"},
    "plan": {"errors", "config", "ops", "nn", "generation", "data", "training"},
    "cli": {
        "errors",
        "config",
        "presets",
        "paths",
        "nn",
        "processing",
        "convert",
        "generation",
        "vlm",
        "hub",
        "models",
    }
    | {
        "untrained",
        "smoljax",
        "serving",
        "data",
        "training",
        "embedding",
        "grounding",
        "evaluation",
        "platform",
        "plan",
        "bench",
        "export",
    },
    "__main__": {"cli"},
}
LAZY = {
    "torch",
    "tensorflow",
    "transformers",
    "huggingface_hub",
    "gguf",
    "av",
    "num2words",
    "tensorflow_datasets",
    "grain",
    "array_record",
    "tensorboardX",
    "matplotlib",
}


def _modules():
    return sorted(PACKAGE.rglob("*.py"))


def _floor(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _imports(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "smoljax":
                yield from (f"smoljax.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_points_up(path):
    floor = _floor(path)
    if floor == "__init__":
        return
    for name in _imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "smoljax":
            continue
        target = parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).with_suffix(".py").exists() else None
        target = parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else target or "smoljax"
        assert target == floor or target in ALLOWED[floor], f"{path.name} ({floor}) imports {name}"


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_in_functions_only(path):
    tree = ast.parse(path.read_text())
    for node in tree.body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        assert not {name.split(".")[0] for name in names} & LAZY


def test_nnx_is_imported_by_its_bridge_only():
    for path in _modules():
        if _floor(path) != "interop":
            assert "nnx" not in path.read_text(), path


def test_loading_and_help_leave_heavy_packages_out():
    code = (
        "import sys, smoljax; smoljax.load; smoljax.SmolVLM; smoljax.Processor\n"
        f"heavy = {sorted(LAZY)!r}\n"
        "found = [m for m in heavy + ['flax.nnx'] if m in sys.modules]\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, smoljax.cli.main; assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
