"""What `bar inspect` prints: the shape, experts, lineage, routing and hashes of a folder or a checkpoint.

A checkpoint holds Megatron's torch_dist data; what is said of it comes from its config and manifest, its
tensors are not read.
"""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.weights.folder import Folder, Progress, companions, read_tensors, silent
from megatron_bar.weights.groups import POLICIES, classify
from megatron_bar.weights.hashes import Units, anchor_hash, combine, config_hash, folder_hash
from megatron_bar.weights.hf_config import ModelConfig, num_parameters, read_config, tensor_shapes
from megatron_bar.weights.manifest import (
    ARTIFACT,
    MANIFEST,
    Certificate,
    Manifest,
    has_manifest,
    read_manifest,
)
from megatron_bar.weights.receipts import Proven

TORCH_DIST = "*.distcp"
"""The data files of a torch_dist checkpoint."""


def describe(path: Path | str, *, hashes: bool = True, progress: Progress = silent) -> list[str]:
    """Returns lines of text. A folder is opened, and so checked; with ``hashes`` it is read whole: NaN is
    refused, and so is a tensor that is not what the manifest says."""
    path = Path(path)
    manifest = read_manifest(path) if has_manifest(path) else None
    if manifest is not None and any(path.rglob(TORCH_DIST)):
        return [f"{path}: checkpoint", *_shape(checkpoint_config(path, manifest)), *_lineage(manifest)]
    if manifest is not None and manifest.kind == ARTIFACT:
        return _artifact(path, manifest, hashes=hashes, progress=progress)
    folder = Folder.open(path)
    files = {info.file for info in folder.tensors.values()}
    size = f"{len(files)} weight file(s), {folder.nbytes:,} bytes"
    lines = [f"{path}: Hugging Face folder, {size}", *_shape(folder.config)]
    beside = ", ".join(file.name for file in companions(path))
    lines.append(f"beside the weights: {beside or 'nothing (no tokenizer)'}")
    lines += _lineage(manifest) if manifest else [f"lineage: unknown (no {MANIFEST})"]
    if hashes:
        units = Proven.open(folder).prove(progress)
        claim = "equals its receipt" if manifest else "finite; no receipts to compare with"
        lines += tick_table(folder.tensors, claim)
        if manifest and manifest.frozen:
            _check_certificate(path, manifest.frozen, units)
        if manifest and manifest.config_hash != config_hash(folder.config):
            lines.append(f"config.json: another one than {MANIFEST} was written with")
        lines.append(f"hash of all tensors: {folder_hash(units)}")
        if folder.config.num_experts:
            lines.append(f"hash of anchor and shared tensors now: {anchor_hash(units)}")
    return lines


def _artifact(path: Path, manifest: Manifest, *, hashes: bool, progress: Progress) -> list[str]:
    """Describes the tensors of an artifact; the whole model is known once its branch is there
    (experts/artifact.py)."""
    config = checkpoint_config(path, manifest)
    tensors, _ = read_tensors(path, config)
    own = Folder(path, config, tensors)
    lines = [
        f"{path}: artifact of an expert, {len(tensors)} tensors, {own.nbytes:,} bytes",
        *_shape(config),
        *_lineage(manifest),
    ]
    if hashes:
        Proven(own, manifest.tensors).prove(progress)
        lines += tick_table(tensors, "equals its receipt")
    return lines


def _check_certificate(path: Path, frozen: Certificate, units: Units) -> None:
    policy = POLICIES.get(frozen.policy)
    found = policy and combine(units, policy.freezes)
    if found != frozen.hash:
        raise BarError(
            f"{path / MANIFEST}: frozen by {frozen.policy!r} expected tensors with hash {frozen.hash}, "
            f"got {found}"
        )


def tick_table(names: Iterable[str], claim: str) -> list[str]:
    """Returns a line per parameter group: what was shown of all its tensors."""
    counts = Counter(classify(name) for name in names)
    return [f"  \u2713 {group:15} {count:6} tensors  {claim}" for group, count in counts.items()]


def checkpoint_config(path: Path, manifest: Manifest) -> ModelConfig:
    """Returns the config of the model whose torch_dist data lie in ``path``."""
    if (path / "config.json").is_file():
        return read_config(path)
    if manifest.config is None:
        raise BarError(f"{path}: a checkpoint expected config.json or a config in {MANIFEST}, got neither")
    return ModelConfig.from_hf(manifest.config, source=f"{path / MANIFEST}: config")


def _shape(config: ModelConfig) -> list[str]:
    counts = Counter()
    for name, shape in tensor_shapes(config).items():
        counts[classify(name)] += math.prod(shape)
    kind = f"{config.num_experts} experts" if config.num_experts else "dense"
    scaled = f" scaled by {config.rope_scaling.factor:g} as Llama 3's" if config.rope_scaling else ""
    return [
        f"family: {config.model_type}, {kind}, {config.dtype}",
        f"shape: {config.num_layers} layers, hidden {config.hidden_size}, FFN {config.intermediate_size},"
        f" heads {config.num_heads} ({config.num_kv_heads} key/value) of {config.head_dim},"
        f" vocabulary {config.vocab_size},"
        f" positions {config.max_positions}, RoPE theta {config.rope_theta:g}{scaled}",
        f"parameters: {num_parameters(config):,}",
        *(f"  {group}: {count:,}" for group, count in counts.items()),
        f"routing: {routing_in_words(config)}",
    ]


def routing_in_words(config: ModelConfig) -> str:
    if not config.num_experts:
        return "none, every token uses the one FFN of a layer"
    chosen = (
        "all are active"
        if config.experts_per_token == config.num_experts
        else f"the {config.experts_per_token} largest of {config.num_experts} are active"
    )
    scale = "renormalised to sum to 1" if config.norm_topk_prob else "not renormalised"
    return (
        f"one linear router per layer, no bias; softmax over all {config.num_experts} experts in float32,"
        f" then top-{config.experts_per_token}: {chosen}; the chosen probabilities are {scale}"
    )


def _lineage(manifest: Manifest) -> list[str]:
    lines = [
        f"kind: {manifest.kind}, written by stage {manifest.stage or 'unknown'}, "
        f"recipe {manifest.recipe or 'none'}, version {manifest.tool_version}"
    ]
    for expert in manifest.experts:
        lines.append(f"expert {expert.index}: {expert.name}, stages: {' > '.join(expert.stages) or 'none'}")
    lines += [f"made from {source.role}: {source.name} (hash {source.hash})" for source in manifest.sources]
    lines += [f"note: {note}" for note in manifest.notes]
    if manifest.frozen:
        frozen = manifest.frozen
        lines.append(
            f"frozen by {frozen.policy} and bit-identical: "
            f"{frozen.units} tensors and router rows (hash {frozen.hash})"
        )
    if manifest.router_stale:
        lines.append(
            "router: STALE, experts were added, replaced or removed since it was trained; "
            "run the router stage"
        )
    if manifest.anchor_hash:
        lines.append(f"anchor hash recorded at the branch: {manifest.anchor_hash}")
    return lines
