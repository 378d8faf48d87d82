"""The published run: BAR-5x7B from OLMo 2 7B (arXiv 2604.18473 and its released recipe), on 8 GPUs per node.

Bring the folders, ``--set base=... --set anchor=...``, and the data, ``--set data=...``, which `bar prepare`
makes of public sets: published.py says of which, and where the run itself read others. What the paper says
and its scripts did differently is a named policy: ``--set experts.math.sft.policy=sft_shared_frozen``. The
recipes of the other sizes are `bar` with another shape and other layouts; none of them was published.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from megatron_bar.data.sources import Source
from megatron_bar.data.templates import Name
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.recipes import published, stages
from megatron_bar.recipes.recipe import ExpertSpec, Recipe, Training
from megatron_bar.rl.grpo import GRPOConfig
from megatron_bar.weights.hf_config import ModelConfig

ROUTER_SHARE = 0.05

SHAPE = ModelConfig(
    vocab_size=100_278,
    hidden_size=4096,
    intermediate_size=11_008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    max_positions=8192,
    rope_theta=500_000.0,
    rms_norm_eps=1e-6,
    pad_token_id=100_277,
    eos_token_id=100_257,
    dtype="bfloat16",
)
"""Shape of the released models, with positions for the rows of mid-training (`branch` sees to them); theta
and vocabulary are read from the anchor's own config when the run starts."""

GENERAL = published.sources(published.GENERAL, "chat", "general")
MATH = published.sources(published.MATH, "chat", "math")
ROUTER_MATH = published.sources(published.ROUTER_MATH, "chat", "math")
CODE = published.sources(published.CODE, "chat", "code")
TOOL_USE = published.sources(published.TOOL_USE, "chat", "tool_use")
SAFETY = published.sources(published.SAFETY, "chat", "safety")
ROUTER = GENERAL + ROUTER_MATH + CODE + SAFETY + TOOL_USE
MIDTRAIN = {
    "math": published.sources(published.MIDTRAIN_MATH, "text"),
    "code": published.sources(published.MIDTRAIN_CODE, "text"),
}
RLVR = {
    "math": published.sources(published.RLVR_MATH, "task"),
    "code": published.sources(published.RLVR_CODE, "task"),
}
RL = GRPOConfig(rounds=300, max_new_tokens=4096)


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """Layouts of the stages. None recomputes activations; which fit, and what they take, `bar plan` says."""

    midtrain: ParallelConfig
    sft: ParallelConfig
    rlvr: ParallelConfig
    slots: int
    """Answers in flight on each data-parallel rank: as many as 80 GB hold at their longest, beside what
    trains in ``rlvr``."""
    route: ParallelConfig


def expert(
    name: str,
    domain: tuple[Source, ...],
    *,
    layouts: Layouts,
    rounds: int = 0,
) -> ExpertSpec:
    """Returns one column of the recipe; SFT sees all of the general data besides the domain's."""
    runs = []
    if name in MIDTRAIN:
        mid = stages.midtrain(parallel=layouts.midtrain, save_every=500)
        runs.append(Training(stage=mid, data=MIDTRAIN[name]))
    sft = stages.sft(parallel=layouts.sft, save_every=200)
    runs.append(Training(stage=sft, data=GENERAL + domain))
    if rounds:
        rlvr = stages.rlvr(parallel=layouts.rlvr, save_every=10)
        rl = replace(RL, rounds=rounds, slots=layouts.slots)
        runs.append(Training(stage=rlvr, data=RLVR[name], rl=rl))
    return ExpertSpec(name=name, runs=tuple(runs))


def bar(
    name: str,
    *,
    shape: ModelConfig,
    base: str,
    anchor: str,
    layouts: Layouts,
    chat_template: Name = "olmo",
) -> Recipe:
    """Returns the published stages for a dense model of ``shape``.

    The authors laid SFT out by the template ``olmo``, RLVR by the tokenizer's own, which has another default
    system text; here one serves both.
    """
    return Recipe(
        name=name,
        data=Path("data"),
        from_hub=published.ALL,
        chat_template=chat_template,
        shape=shape,
        base=Path(base),
        anchor=Path(anchor),
        experts=(
            expert("math", MATH, layouts=layouts, rounds=300),
            expert("code", CODE, layouts=layouts, rounds=150),
            expert("safety", SAFETY, layouts=layouts),
            expert("tool_use", TOOL_USE, layouts=layouts),
        ),
        route=Training(
            stage=stages.route(parallel=layouts.route, save_every=20),
            data=tuple(replace(source, share=ROUTER_SHARE) for source in ROUTER),
        ),
    )


def recipe() -> Recipe:
    return bar(
        "olmo2_7b",
        shape=SHAPE,
        base="OLMo-2-1124-7B",
        anchor="BAR-7B",
        # On 8 GPUs as on 64 what the planner proposes, or within a tenth of its time.
        layouts=Layouts(
            midtrain=ParallelConfig(tensor=2),
            sft=ParallelConfig(expert=2),
            rlvr=ParallelConfig(tensor=4),
            slots=48,  # tensor 2 holds 16: half as many in flight on a node
            route=ParallelConfig(expert=2),
        ),
    )
