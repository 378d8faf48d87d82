"""Megatron's torch_dist checkpoints of weights, read by Megatron into a model on any layout.

Keys name global layers and global experts, so any layout reads a checkpoint. Megatron unpickles
``.metadata``, so `Checkpoint` looks at it first. Megatron's own ``load`` is not used: it also unpickles a
"common state" without any restriction (``load_common_state_dict`` in megatron-core 0.19.2), and neither a
surplus tensor nor one that the files hold in part is an error to it. Optimizer state beside the weights is
left alone.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import apply_factory_merges
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from torch.distributed.checkpoint.api import CheckpointException

from megatron_bar.conversion.dist_files import Checkpoint
from megatron_bar.errors import BarError
from megatron_bar.models.build import LanguageModel
from megatron_bar.parallel.state import share_error


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a gloo job of one process is no cluster
        yield


def weights_state(model: LanguageModel) -> dict:
    """Returns Megatron's description of what this rank holds."""
    # Every expert under its own key: Megatron's fused expert axis cannot have a frozen expert left out.
    # Megatron adds process groups to this dict, so it must not outlive them.
    metadata = {"singleton_local_shards": True}
    state = model.sharded_state_dict(metadata=metadata)
    return {key: part for key, part in state.items() if not key.endswith("_extra_state")}


def load_weights(model: LanguageModel, folder: Path) -> None:
    """Fills the parameters; raises where a tensor is missing, surplus, other or not finite. Collective."""
    state, _, factories = load_preprocess(weights_state(model))
    error = None
    try:
        Checkpoint(folder, model.shape)
        with _quiet(), torch.no_grad():
            loaded = apply_factory_merges(TorchDistLoadShardedStrategy().load(state, folder), factories)
            for name, param, op in model.parameters_with_ops():
                param.copy_(loaded[name])
                if not param.isfinite().all():
                    raise BarError(
                        f"{folder}: tensor {op.names[0]!r}: expected finite values, got NaN or infinity"
                    )
    except BarError as problem:
        error = problem
    except (CheckpointException, CheckpointingException) as problem:
        error = BarError(f"{folder}: the checkpoint could not be read: {_reason(problem)}")
    share_error(error)


def _reason(error: BaseException) -> str:
    """One line; torch wraps what a rank raised into an exception whose text is a traceback."""
    if isinstance(error, CheckpointException):
        error = next((cause for cause, _ in error.failures.values()), BarError("another rank failed"))
    return next(iter(str(error).splitlines()), type(error).__name__)
