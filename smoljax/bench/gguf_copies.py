"""A GGUF file written again in another precision, so that llama.cpp runs the weights that we run."""

from pathlib import Path
from typing import Any

import numpy as np


def write_copy(source: Path, target: Path, kind: str) -> None:
    """Writes the model of `source` with its matrices in `kind`: "F32", "F16" or "Q8_0"; vectors stay float32.

    The metadata, the tokenizer in it, is copied.
    """
    import gguf
    from gguf import GGMLQuantizationType as Types

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            value: Any = field.contents()
            if field.types[0] == gguf.GGUFValueType.ARRAY:
                writer.add_array(name, value)
            else:
                writer.add_key_value(name, value, field.types[0])
    writer.add_file_type({"F32": 0, "F16": 1, "Q8_0": 7}[kind])
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        plain = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        if plain.ndim == 1 or kind == "F32":
            writer.add_tensor(tensor.name, plain)
        else:
            writer.add_tensor(tensor.name, gguf.quantize(plain, Types[kind]), raw_dtype=Types[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
