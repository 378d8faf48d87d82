"""Does BAR carry over to blocks with norms before them? The tiny recipe on a Qwen3 shape, with the baselines
that matter; `llama` on a Llama shape.

The published evidence is of OLMo 2 alone, whose norms stand behind the blocks. All else is the tiny recipe's:
world, sizes, learning rates, steps, which were chosen on OLMo 2's shape. Heads are wider than hidden size /
heads, as in Qwen3.
"""

from dataclasses import replace

from megatron_bar.recipes import tiny
from megatron_bar.recipes.recipe import ExpertSpec, Recipe
from megatron_bar.recipes.study import Claim
from megatron_bar.recipes.tiny import CLAIMS, CLOSE
from megatron_bar.recipes.tiny_study import Parts, baselines, claim
from megatron_bar.weights.rope import Llama3Rope

BASELINES = {
    "retrain with mid-training": "retrain-rlvr",
    "BTX (shared averaged)": "btx-route",
    "FlexOlmo (shared always frozen)": "flexolmo-route",
    "dense merge, no mid-training": "dense_merge",
}
LEFT_OUT = ("retrain_post", "continued", "dense_merge_midtrain", "btx_first")
CLOSE_TO_RETRAINING = {"expect": "not lower", "margin": CLOSE}


def _claims() -> tuple[Claim, ...]:
    return (
        *CLAIMS,
        claim(
            "BAR comes close to retraining with mid-training", "retrain-rlvr", "final", **CLOSE_TO_RETRAINING
        ),
        claim("BAR beats BTX, shared parameters averaged", "btx-route", "final"),
        claim("freeing shared parameters stage by stage beats FlexOlmo's recipe", "flexolmo-route", "final"),
        claim("dense merging falls short of BAR", "dense_merge", "final"),
    )


def study(name: str, **shape) -> Recipe:
    """Returns the tiny recipe and its baselines, with these fields of its `ModelConfig`."""
    made = tiny.recipe()
    made = replace(made, name=name, shape=replace(made.shape, **shape))
    more = [part for part in baselines(Parts(made)) if not part.name.startswith(LEFT_OUT)]
    # One learning rate for every SFT, the recipe's, as for its own experts.
    more = [
        replace(part, runs=tuple(replace(run, rates=(), validation=()) for run in part.runs))
        if isinstance(part, ExpertSpec)
        else part
        for part in more
    ]
    compared = replace(
        made.study,
        baselines=BASELINES,
        claims=_claims(),
        retrained="retrain-rlvr",
    )
    return replace(made, more=tuple(more), study=compared)


def recipe() -> Recipe:
    """Returns the study on a Qwen3 shape."""
    return study("tiny_prenorm", family="qwen3", own_head_dim=48, num_kv_heads=2)


def llama() -> Recipe:
    """Returns the study on a Llama 3.1 shape."""
    rope = Llama3Rope(
        factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128
    )
    return study("tiny_llama", family="llama", rope_scaling=rope, num_kv_heads=2)
