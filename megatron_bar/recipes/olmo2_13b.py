"""BAR from OLMo 2 13B (allenai/OLMo-2-1124-13B) by the published stages of 7B;
from one node of 8 GPUs of 80 GB on.

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
    intermediate_size=13_824,
    num_layers=40,
    num_heads=40,
    num_kv_heads=40,
)


def recipe() -> Recipe:
    return olmo2_7b.bar(
        "olmo2_13b",
        shape=SHAPE,
        base="OLMo-2-1124-13B",
        anchor="OLMo-2-1124-13B-Instruct",
        layouts=olmo2_7b.Layouts(
            midtrain=ParallelConfig(tensor=4),
            sft=ParallelConfig(tensor=2, expert=4),
            rlvr=ParallelConfig(tensor=4),
            slots=16,
            route=ParallelConfig(tensor=2),
        ),
    )
