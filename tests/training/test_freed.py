"""What a stage leaves behind in its process: a run makes many, one after the other."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from distributed import run_distributed
from folders import save_hf

from megatron_bar.data.packing import Batch
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.recipes import stages
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.trainer import Trainer


def model_is_left(source: Path, layout: ParallelConfig) -> bool:
    trainer = Trainer(source, stages.sft(parallel=layout, sequence=8, batch=2, micro_batch=1), steps=1)
    ids = torch.arange(8).view(1, 8) + 2
    batch = Batch(ids=ids, positions=ids - 2, labels=ids, documents=None)
    trainer.step([batch] * 2, LanguageModelling())
    model = weakref.ref(trainer.model)
    del trainer
    gc.collect()
    return model() is not None


@pytest.mark.parametrize(
    "experts, active, layout, processes",
    [
        (2, 2, ParallelConfig(), 1),
        (4, 2, ParallelConfig(), 1),
        (2, 2, ParallelConfig(tensor=2), 2),
        (2, 2, ParallelConfig(pipeline=2), 2),
        (2, 2, ParallelConfig(expert=2), 2),
        (4, 2, ParallelConfig(expert=2), 2),
        (4, 2, ParallelConfig(tensor=2, expert=2), 4),
    ],
)
def test_a_stage_leaves_no_model_behind(experts, active, layout, processes, tmp_path):
    source = save_hf(tmp_path / "source", experts=experts, num_experts_per_tok=active, seed=1)
    assert not any(run_distributed(model_is_left, processes, source, layout))
