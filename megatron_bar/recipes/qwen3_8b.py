"""BAR from Qwen3 8B (Qwen/Qwen3-8B-Base) by the published stages of OLMo 2 7B, on 8 GPUs per node.

Nobody published such a run; learning rates are those of OLMo 2 7B.
"""

from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.recipes import olmo2_7b
from megatron_bar.recipes.recipe import Recipe
from megatron_bar.weights.hf_config import ModelConfig

SHAPE = ModelConfig(
    family="qwen3",
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=12_288,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    own_head_dim=128,
    max_positions=40_960,
    rope_theta=1_000_000.0,
    rms_norm_eps=1e-6,
    bos_token_id=151_643,
    eos_token_id=151_645,
    dtype="bfloat16",
)


def recipe() -> Recipe:
    return olmo2_7b.bar(
        "qwen3_8b",
        shape=SHAPE,
        base="Qwen3-8B-Base",
        anchor="Qwen3-8B",
        chat_template="chatml",  # as its own, with the published data's way of calling
        layouts=olmo2_7b.Layouts(
            midtrain=ParallelConfig(tensor=2),
            sft=ParallelConfig(tensor=2),
            rlvr=ParallelConfig(tensor=4),
            slots=128,  # a token's keys are a quarter of OLMo 2 7B's
            route=ParallelConfig(expert=2),
        ),
    )
