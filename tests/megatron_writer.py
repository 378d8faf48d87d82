"""Checkpoints as Megatron itself writes them, for the code that reads them."""

import queue
import warnings
from pathlib import Path

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_bar.models.build import LanguageModel
from megatron_bar.models.torch_dist import weights_state


def save_weights(model: LanguageModel, folder: Path) -> None:
    """Into ``folder``, which exists and is empty. Collective."""
    # Megatron would spawn a process for this queue, which nobody but this process reads.
    filesystem_async._results_queue = queue.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a gloo job of one process is no cluster
        dist_checkpointing.save(weights_state(model), str(folder), async_strategy=None)
