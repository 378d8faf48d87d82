"""Megatron's torch_dist checkpoints of weights: for those who go on with Megatron's own tools, and back.

Keys name global layers and global experts, so any layout reads a checkpoint. Megatron unpickles ``.metadata``, so that
file passes an allow-list first and is compared with the model and with the files beside it. Megatron's own ``load`` is
not used: it also unpickles a "common state" without any restriction (``load_common_state_dict`` in megatron-core 0.19.2),
and neither a surplus tensor nor one that the files hold in part is an error to it. Optimizer state beside the weights is
left alone.
"""

import math
import pickle
import queue
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factory_merges
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_bar.errors import BarError
from megatron_bar.models.build import LanguageModel
from megatron_bar.parallel.state import share_error

_ALLOWED = re.compile(
    r"torch\.distributed\.checkpoint\.metadata\.(Metadata|MetadataIndex|TensorProperties|TensorStorageMetadata|BytesStorageMetadata"
    r"|ChunkStorageMetadata|StorageMeta|_MEM_FORMAT_ENCODING)"
    r"|torch\.distributed\.checkpoint\.filesystem\._StorageInfo"
    r"|torch\.distributed\.checkpoint\.planner\.(SavePlan|WriteItem|WriteItemType|TensorWriteData)"
    r"|torch\.(Size|float32|bfloat16|float16)|torch\.serialization\._get_layout"
)


class _Restricted(pickle.Unpickler):
    def find_class(self, module, name):
        if not _ALLOWED.fullmatch(f"{module}.{name}"):
            raise BarError(f"it refers to {module}.{name}, which the description of a checkpoint has no use for")
        return super().find_class(module, name)


def read_metadata(folder: Path) -> dict[str, TensorStorageMetadata]:
    """The weights a checkpoint holds, by key, every one whole and within the files of the folder.

    Refuses a ``.metadata`` that holds anything but descriptions of tensors; nothing in it is executed.
    """
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            metadata = _Restricted(file).load()
        if not isinstance(metadata, Metadata):
            raise BarError(f"expected the description of a checkpoint, got {type(metadata).__name__}")
        tensors = {key: known for key, known in metadata.state_dict_metadata.items() if isinstance(known, TensorStorageMetadata)}
        _check_files(folder, metadata, tensors)
    except FileNotFoundError:
        raise BarError(f"{path}: not found; expected a checkpoint in Megatron's torch_dist format") from None
    except Exception as error:  # noqa: BLE001  the objects of a hostile pickle may raise anything
        raise BarError(f"{path}: refused: {str(error) or type(error).__name__}") from None
    return {key: known for key, known in tensors.items() if not key.startswith("optimizer.")}


def _check_files(folder: Path, metadata: Metadata, tensors: dict[str, TensorStorageMetadata]) -> None:
    for key, known in tensors.items():
        found = sum(math.prod(chunk.sizes) for chunk in known.chunks)
        if found != math.prod(known.size):
            raise BarError(f"tensor {key!r}: expected {math.prod(known.size)} values, got {found}")
    for index, place in metadata.storage_data.items():
        if not re.fullmatch(r"\w+\.distcp", place.relative_path):
            raise BarError(f"{index.fqn!r}: expected in a .distcp file of this folder, got {place.relative_path!r}")
        file, end = folder / place.relative_path, place.offset + place.length
        if not file.is_file():
            raise BarError(f"{index.fqn!r} expected in {file.name}, got no such file")
        if end > file.stat().st_size:
            raise BarError(f"{file.name} is truncated: {index.fqn!r} expected up to byte {end}, got {file.stat().st_size}")


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a gloo job of one process is no cluster
        yield


def _state(model: LanguageModel) -> dict:
    # Every expert under its own key: Megatron's fused expert axis cannot have a frozen expert left out. Megatron adds
    # process groups to this dict, so it must not outlive them.
    metadata = {"singleton_local_shards": True}
    return {key: part for key, part in model.sharded_state_dict(metadata=metadata).items() if not key.endswith("_extra_state")}


def save_weights(model: LanguageModel, folder: Path) -> None:
    """Writes into ``folder``, which exists and is empty. Collective."""
    # Megatron would spawn a process for this queue, which nobody but this process reads: it would outlive a kill.
    filesystem_async._results_queue = queue.Queue()
    try:
        with _quiet():
            dist_checkpointing.save(_state(model), str(folder), async_strategy=None)
    except (CheckpointException, OSError) as error:
        raise BarError(f"{folder}: the checkpoint could not be written: {_reason(error)}") from None


def load_weights(model: LanguageModel, folder: Path) -> None:
    """Fills the model's parameters; a tensor that is missing, surplus, different or not finite is an error. Collective."""
    state, _, factories = load_preprocess(_state(model))
    wanted = [part for part in nested_values(state) if isinstance(part, ShardedTensor)]
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, {part.key for part in wanted})
    error = None
    try:
        _compare(model, wanted, set().union(*everyone), folder)
        with _quiet(), torch.no_grad():
            loaded = apply_factory_merges(TorchDistLoadShardedStrategy().load(state, folder), factories)
            for (name, param), op in zip(model.named_parameters(), model.weight_ops().values(), strict=True):
                param.copy_(loaded[name])
                if not param.isfinite().all():
                    raise BarError(f"{folder}: tensor {op.names[0]!r}: expected finite values, got NaN or infinity")
    except BarError as problem:
        error = problem
    except (CheckpointException, CheckpointingException) as problem:
        error = BarError(f"{folder}: the checkpoint could not be read: {_reason(problem)}")
    share_error(error)


def _compare(model: LanguageModel, wanted: list[ShardedTensor], keys: set[str], folder: Path) -> None:
    """The checkpoint holds the tensors ``keys`` of all ranks and no other, this rank's in the model's shape and dtype."""
    known, path = read_metadata(folder), folder / ".metadata"
    if missing := sorted(keys - known.keys()):
        raise BarError(f"{path}: another model's checkpoint: expected tensor {missing[0]!r}, got no such tensor")
    if surplus := sorted(known.keys() - keys):
        raise BarError(f"{path}: another model's checkpoint: expected no tensor {surplus[0]!r}, got one")
    for part in wanted:
        expected = (list(part.global_shape), part.dtype)
        found = (list(known[part.key].size), known[part.key].properties.dtype)
        if part.allow_shape_mismatch and 0 <= found[0][0] - model.shape.vocab_size < model.shape.num_kv_heads:
            expected[0][0] = found[0][0]  # padded for another tensor parallelism, at most one rank per key/value head
        if found != expected:
            raise BarError(f"{path}: another model's checkpoint: tensor {part.key!r}: expected {expected}, got {found}")


def _reason(error: BaseException) -> str:
    """One line; torch wraps what a rank raised into an exception whose text is a traceback."""
    if isinstance(error, CheckpointException):
        error = next((cause for cause, _ in error.failures.values()), BarError("another rank failed"))
    return next(iter(str(error).splitlines()), type(error).__name__)
