"""A model from nothing: a folder of random weights, the same for the same seed whatever trains it."""

from pathlib import Path

import torch
from blake3 import blake3

from megatron_bar.weights.groups import ParamGroup, classify
from megatron_bar.weights.hf_config import ModelConfig, tensor_shapes
from megatron_bar.weights.manifest import Manifest
from megatron_bar.weights.safetensors_io import TORCH_DTYPES
from megatron_bar.weights.writer import write_folder


def random_folder(
    config: ModelConfig, out: Path, *, tokenizer: Path, seed: int, embedding_std: float
) -> None:
    """Writes a folder of random weights: matrices from N(0, initializer_range), as transformers does,
    embeddings from N(0, embedding_std), norms one."""
    shapes = tensor_shapes(config)

    def tensor(name: str) -> list[torch.Tensor]:
        dtype = TORCH_DTYPES[config.dtype]
        if len(shapes[name]) == 1:
            return [torch.ones(shapes[name], dtype=dtype)]
        std = embedding_std if classify(name) is ParamGroup.EMBEDDING else config.initializer_range
        digest = blake3(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
        return [(torch.randn(shapes[name], generator=generator) * std).to(dtype)]

    write_folder(
        out,
        config,
        tensor,
        companions_from=tokenizer,
        manifest=lambda *_: Manifest(family=config.model_type, kind="dense", stage="init"),
    )
