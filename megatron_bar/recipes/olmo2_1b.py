"""BAR from OLMo 2 1B (allenai/OLMo-2-0425-1B) by the published stages of 7B;
the model is whole on every GPU.

Nobody published such a run; learning rates are those of 7B.
"""

from dataclasses import replace

from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.recipes import olmo2_7b
from megatron_bar.recipes.recipe import Recipe

SHAPE = replace(
    olmo2_7b.SHAPE,
    vocab_size=100_352,
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=16,
    num_heads=16,
    num_kv_heads=16,
)


def recipe() -> Recipe:
    return olmo2_7b.bar(
        "olmo2_1b",
        shape=SHAPE,
        base="OLMo-2-0425-1B",
        anchor="OLMo-2-0425-1B-Instruct",
        layouts=olmo2_7b.Layouts(
            midtrain=ParallelConfig(),
            sft=ParallelConfig(),
            rlvr=ParallelConfig(),
            slots=32,
            route=ParallelConfig(),
        ),
    )
