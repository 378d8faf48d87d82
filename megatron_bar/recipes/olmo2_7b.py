"""The published run: BAR-5x7B from OLMo 2 7B (arXiv 2604.18473 and its released recipe), on 8 GPUs per node.

Bring the folders and the data: ``--set base=... --set anchor=... --set data=...``. What the paper says and
its scripts did differently is a named policy: ``--set experts.math.sft.policy=sft_shared_frozen``. The
recipes of the other sizes are `bar` with another shape and other layouts; none of them was published.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from megatron_bar.data.sources import Source
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.recipes import stages
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

GENERAL = tuple(
    Source(path=Path(f"sft/general/{name}.jsonl"), kind="chat", domain="general")
    for name in ("wildchat", "flan_v2", "hardcoded", "tablegpt", "oasst1", "aya", "persona_if")
)
MATH = tuple(
    Source(path=Path(f"sft/math/{name}.jsonl"), kind="chat", domain="math")
    for name in (
        "persona_math_grade",
        "persona_algebra",
        "openmath2_gsm8k",
        "numinamath_tir",
        "persona_math_v5",
    )
)
CODE = (Source(path=Path("sft/code/dolci_instruct_sft_coding.jsonl"), kind="chat", domain="code"),)
TOOL_USE = (
    Source(path=Path("sft/tool_use/dolci_instruct_sft_tool_use.jsonl"), kind="chat", domain="tool_use"),
)
SAFETY = (Source(path=Path("sft/safety/dolci_instruct_sft_safety.jsonl"), kind="chat", domain="safety"),)
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
    midtrain: bool = False,
    rounds: int = 0,
) -> ExpertSpec:
    """Returns one column of the recipe; SFT sees all of the general data besides the domain's."""
    runs = []
    if midtrain:
        mid = stages.midtrain(parallel=layouts.midtrain, save_every=500)
        runs.append(Training(stage=mid, data=(Source(path=Path(f"midtrain/{name}.jsonl"), kind="text"),)))
    sft = stages.sft(parallel=layouts.sft, save_every=200)
    runs.append(Training(stage=sft, data=GENERAL + domain))
    if rounds:
        rlvr = stages.rlvr(parallel=layouts.rlvr, save_every=10)
        tasks = (Source(path=Path(f"rlvr/{name}.jsonl"), kind="task"),)
        rl = replace(RL, rounds=rounds, slots=layouts.slots)
        runs.append(Training(stage=rlvr, data=tasks, rl=rl))
    return ExpertSpec(name=name, runs=tuple(runs))


def bar(
    name: str,
    *,
    shape: ModelConfig,
    base: str,
    anchor: str,
    layouts: Layouts,
) -> Recipe:
    """Returns the published stages for a dense model of ``shape``."""
    return Recipe(
        name=name,
        data=Path("data"),
        shape=shape,
        base=Path(base),
        anchor=Path(anchor),
        experts=(
            expert("math", MATH, layouts=layouts, midtrain=True, rounds=300),
            expert("code", CODE, layouts=layouts, midtrain=True, rounds=150),
            expert("safety", SAFETY, layouts=layouts),
            expert("tool_use", TOOL_USE, layouts=layouts),
        ),
        route=Training(
            stage=stages.route(parallel=layouts.route, save_every=20),
            data=tuple(
                replace(source, share=ROUTER_SHARE) for source in GENERAL + MATH + CODE + SAFETY + TOOL_USE
            ),
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
