"""From a packed GGUF file to a plain model folder: ``python -m llmrec_core.models.dequantize FILE FOLDER``.

Done once per model. Weights are kept in float32: a 4-bit block times its scale needs more digits than half precision
has, and the unpacked model shall be the packed one exactly.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llmrec_core.errors import ModelError


def load_gguf(path: Path) -> PreTrainedModel:
    """The model of a GGUF file with every weight unpacked to float32, on the CPU."""
    options = {}
    if hasattr(transformers, "GgufConfig"):
        # Newer releases keep the weights packed unless told otherwise; older ones always unpack.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False, dtype=torch.float32,
        **options,
    )  # fmt: skip


def dequantize(path: Path, folder: Path) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files of a GGUF file into an existing folder.

    Raises:
        ModelError: weights stayed packed.
    """
    model = load_gguf(path)
    strange = sorted({str(p.dtype) for p in model.parameters()} - {"torch.float32"})
    if strange:
        raise ModelError(f"weights stayed packed as {', '.join(strange)}.", where=path.name)
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(
        str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
    )
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    dequantize(Path(sys.argv[1]), Path(sys.argv[2]))
