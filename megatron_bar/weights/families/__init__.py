"""The families of base models, by name; a family is a value in a file of its own, and a line here."""

from megatron_bar.weights.families.llama import LLAMA, MISTRAL
from megatron_bar.weights.families.olmo2 import OLMO2
from megatron_bar.weights.families.qwen2 import QWEN2
from megatron_bar.weights.families.qwen3 import QWEN3
from megatron_bar.weights.family import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (OLMO2, QWEN3, LLAMA, MISTRAL, QWEN2)}

FAMILY_OF: dict[str, Family] = {
    form.model_type: family
    for family in reversed(FAMILIES.values())  # of two with one mixture, the first
    for form in (family.dense, family.mixture)
}
"""The family of each model_type of config.json, as a reader of it finds it."""

UNSAYABLE = {
    "olmo": "its norms have no weights",
    "olmo3": "no mixture has its pattern of sliding windows (FlexOlmo attends to everything)",
    "smollm3": "no mixture has its layers without RoPE",
    "granite": "no mixture without shared experts has its multipliers",
    "phi3": "no mixture has its fused projections with their RoPE",
    "gemma": "no mixture has its norms and scaled embeddings",
    "gemma2": "no mixture has its four norms a block and its soft caps",
    "gemma3_text": "no mixture has its four norms a block and its sliding windows",
}
"""Model types that are known and that no class of a mixture can say, and why."""
