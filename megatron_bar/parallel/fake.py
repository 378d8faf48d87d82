"""One process in the place of any rank of a large job: groups that exchange nothing, parameters that hold
nothing.

torch's fake process groups know who is in them, and a collective over one returns at once; its values mean
nothing. Tensors on the meta device have a shape and no memory. So every rank's real modules can be built, one
rank after the other.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_bar.errors import BarError
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import ParallelConfig, set_layout
from megatron_bar.weights.hf_config import ModelConfig


@contextmanager
def fake_rank(rank: int, world_size: int, layout: ParallelConfig, config: ModelConfig) -> Iterator[None]:
    """Runs the block as rank ``rank`` of ``world_size``, with Megatron's groups for a model in ``layout``;
    modules go to the meta device."""
    if dist.is_initialized():
        raise BarError(
            "a process of a job cannot stand for others: expected to be started alone, not under torchrun"
        )
    hook = (
        sys.excepthook
    )  # torch's own puts the rank before every line of a traceback, one of them for each rank that was
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        set_layout(layout, config, seed=0)
        with _on_meta():
            yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
        sys.excepthook = hook


@contextmanager
def _on_meta() -> Iterator[None]:
    """Names the meta device where Megatron and this project ask ``torch.cuda.current_device()`` for the place
    of parameters, and so overrule a torch.device."""
    current_device = torch.cuda.current_device
    tensor_type = torch.Tensor.type
    torch.cuda.current_device = lambda: "meta"
    torch.Tensor.type = cpu.cuda_type
    try:
        yield
    finally:
        torch.cuda.current_device = current_device
        torch.Tensor.type = tensor_type
