"""Model folders of real shapes whose values come from a formula, written by the project's own writer."""

import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from megatron_bar.recipes import olmo2_1b, olmo2_7b
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import RLVR, FreezePolicy, ParamGroup, classify
from megatron_bar.weights.hf_config import ModelConfig, tensor_shapes
from megatron_bar.weights.manifest import Manifest, TrainingRecord, read_manifest
from megatron_bar.weights.safetensors_io import ITEMSIZE
from megatron_bar.weights.writer import WriteOptions, write_folder

SHAPES = {
    "tiny": replace(
        olmo2_7b.SHAPE,
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=768,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        pad_token_id=None,
        eos_token_id=0,
    ),
    "olmo2_1b": olmo2_1b.SHAPE,
    # With as many rows in the embedding as the released folder has.
    "olmo2_7b": replace(olmo2_7b.SHAPE, vocab_size=100_352),
}
"""In bfloat16."""
UNVERIFIED = WriteOptions(verify="none")
TOKENIZER = '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []}'


def nbytes(config: ModelConfig, counts: Callable[[str], bool] = lambda name: True) -> int:
    """Bytes of the tensors of a model, of those that ``counts`` says yes to."""
    shapes = tensor_shapes(config)
    return sum(torch.Size(s).numel() for name, s in shapes.items() if counts(name)) * ITEMSIZE[config.dtype]


def values(name: str, shape: tuple[int, ...], seed: int) -> Iterable[torch.Tensor]:
    """Numbers of N(0, 0.02) that differ by tensor and seed, as blocks of rows, all of the same."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    rows = max(1, (1 << 20) // max(1, torch.Size(shape[1:]).numel()))
    block = torch.randn(min(rows, shape[0]), *shape[1:], generator=generator).mul_(0.02).bfloat16()
    for start in range(0, shape[0], rows):
        yield block[: min(rows, shape[0] - start)]


def dense(out: Path, config: ModelConfig, seed: int) -> Path:
    """A dense folder, with a tokenizer of one word."""
    tokenizer = out.parent / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    (tokenizer / "tokenizer.json").write_text(TOKENIZER)
    shapes = tensor_shapes(config)
    manifest = Manifest(family=config.model_type, kind="dense", stage="init")
    produce = lambda name: values(name, shapes[name], seed)  # noqa: E731
    write_folder(
        out, config, produce, companions_from=tokenizer, manifest=lambda *_: manifest, options=UNVERIFIED
    )
    return out


def trained(branched: Path, out: Path, seed: int, policy: FreezePolicy = RLVR) -> Path:
    """A folder as a stage of ``policy`` leaves it: all that it trains has moved, the anchor's row of a router
    excepted."""
    folder = Folder.open(branched)

    def produce(name: str) -> Iterable[torch.Tensor]:
        if not policy.trainable(name):
            return folder.chunks(name)
        if classify(name) is ParamGroup.ROUTER:
            return [folder.read(name) + torch.tensor([[0.0], [0.01 * seed]]).bfloat16()]
        return values(name, folder.tensors[name].shape, seed)

    training = TrainingRecord(stage=policy.name, policy=policy.name)
    manifest = read_manifest(branched).after(training, sources=(), expert=out.name)
    write_folder(
        out,
        folder.config,
        produce,
        companions_from=branched,
        manifest=lambda *_: manifest,
        options=UNVERIFIED,
    )
    return out


def hollow(path: Path, *keeps: ParamGroup) -> None:
    """Makes of all tensors but those of the groups ``keeps`` a hole that takes no disk: for a folder of which
    a tool reads headers and receipts alone. One that read a value would refuse it, by its hash."""
    tensors = Folder.open(path).tensors.items()
    for file in path.glob("*.safetensors"):
        held = {name: info for name, info in tensors if info.file == file}
        parts = [(0, min(info.offset for info in held.values()))]  # the header
        parts += [(info.offset, info.nbytes) for name, info in held.items() if classify(name) in keeps]
        beside = file.with_suffix(".hollow")
        with file.open("rb") as whole, beside.open("xb") as sparse:
            sparse.truncate(file.stat().st_size)
            for offset, count in parts:
                whole.seek(offset)
                sparse.seek(offset)
                sparse.write(whole.read(count))
        os.replace(beside, file)
