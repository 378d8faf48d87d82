"""BAR from Llama 3.1 8B (meta-llama/Llama-3.1-8B) by the published stages of OLMo 2 7B, on 8 GPUs per node.

Nobody published such a run; learning rates are those of OLMo 2 7B. Its tokenizer lacks special tokens that
the published data asks for: ChatML's, so that template tulu lays chats out and has no place for the calls of
tool use, and those of text to fill in. A run says so before it starts; bring a tokenizer with them, or leave
that data out.
"""

from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.recipes import olmo2_7b
from megatron_bar.recipes.recipe import Recipe
from megatron_bar.weights.hf_config import ModelConfig
from megatron_bar.weights.rope import Llama3Rope

SHAPE = ModelConfig(
    family="llama",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    max_positions=131_072,
    rope_theta=500_000.0,
    rope_scaling=Llama3Rope(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    rms_norm_eps=1e-5,
    bos_token_id=128_000,
    eos_token_id=(128_001, 128_008, 128_009),
    dtype="bfloat16",
)


def recipe() -> Recipe:
    return olmo2_7b.bar(
        "llama31_8b",
        shape=SHAPE,
        base="Llama-3.1-8B",
        anchor="Llama-3.1-8B-Instruct",
        chat_template="tulu",
        layouts=olmo2_7b.Layouts(
            midtrain=ParallelConfig(tensor=2),
            sft=ParallelConfig(expert=2),
            rlvr=ParallelConfig(tensor=4),
            slots=128,  # a token's keys are a quarter of OLMo 2 7B's
            route=ParallelConfig(expert=2),
        ),
    )
