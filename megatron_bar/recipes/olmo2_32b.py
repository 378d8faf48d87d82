"""BAR from OLMo 2 32B (allenai/OLMo-2-0325-32B) by the published stages of 7B;
from two nodes of 8 GPUs of 80 GB on.

Nobody published such a run; learning rates are those of 7B.
"""

from dataclasses import replace

from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.recipes import olmo2_7b
from megatron_bar.recipes.recipe import Recipe

SHAPE = replace(
    olmo2_7b.SHAPE,
    vocab_size=100_352,
    hidden_size=5120,
    intermediate_size=27_648,
    num_layers=64,
    num_heads=40,
    num_kv_heads=8,
)


def recipe() -> Recipe:
    return olmo2_7b.bar(
        "olmo2_32b",
        shape=SHAPE,
        base="OLMo-2-0325-32B",
        anchor="OLMo-2-0325-32B-Instruct",
        # Two pipeline ranks, so that two nodes hold it without recomputation: on more they cost little.
        layouts=olmo2_7b.Layouts(
            midtrain=ParallelConfig(tensor=8, pipeline=2),
            sft=ParallelConfig(tensor=8, pipeline=2, expert=4),
            rlvr=ParallelConfig(tensor=8, pipeline=2),
            slots=128,
            route=ParallelConfig(tensor=8, pipeline=2, expert=4),
        ),
    )
