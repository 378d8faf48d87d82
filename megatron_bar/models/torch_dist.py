"""Megatron's torch_dist checkpoints of weights: for those who go on with Megatron's own tools, and back.

A folder holds Megatron's data and a manifest with the Hugging Face config. Keys name global layers and global experts, so
any layout reads it. Megatron unpickles one of its files, so that file passes an allow-list first.
"""

import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException

from megatron_bar.errors import BarError
from megatron_bar.models.build import LanguageModel

# One frozen expert leaves a hole in Megatron's fused expert axis; every expert under its own key has none.
_METADATA = {"singleton_local_shards": True}
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


def check_metadata(folder: Path) -> None:
    """Refuses a ``.metadata`` that holds anything but descriptions of tensors; nothing in it is executed."""
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            _Restricted(file).load()
    except FileNotFoundError:
        raise BarError(f"{path}: not found; expected a checkpoint in Megatron's torch_dist format") from None
    except (BarError, pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise BarError(f"{path}: refused: {error}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a gloo job of one process is no cluster
        yield


def _state(model: LanguageModel) -> dict:
    return {key: part for key, part in model.sharded_state_dict(metadata=_METADATA).items() if not key.endswith("_extra_state")}


def save_weights(model: LanguageModel, folder: Path) -> None:
    """Writes into ``folder``, which exists and is empty. Collective."""
    with _quiet():
        dist_checkpointing.save(_state(model), str(folder), async_strategy=None)


def load_weights(model: LanguageModel, folder: Path) -> None:
    """Fills the model's parameters; a tensor that is missing or of another shape is an error. Collective."""
    check_metadata(folder)
    try:
        with _quiet():
            loaded = dist_checkpointing.load(_state(model), str(folder))
    except (CheckpointingException, KeyError, OSError, RuntimeError, ValueError) as error:
        raise BarError(f"{folder}: not this model's checkpoint: {str(error).splitlines()[0]}") from None
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.copy_(loaded[name])
