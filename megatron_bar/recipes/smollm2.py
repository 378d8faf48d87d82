"""BAR on a real model, on a laptop: SmolLM2-135M-Instruct with experts for tool use, mathematics, code and
safety.

    make real            # the packages, the anchor, the data, this recipe
    bar run smollm2 --out runs/real/run

What trains in each stage is published; sizes and rates are for some 0.8 M training tokens on two CPU cores,
and chosen for a model fifty times smaller. Base and anchor are the same model, since its base is in no
package: mid-training starts from the instruct model. General data are the anchor's own answers
(examples/real_data.py). Chats are laid out by `chatml`: SmolLM2's own template is ChatML too, but has no
place for functions and calls, and puts in a system text about itself where there is none.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from megatron_bar.data.smol import DOMAINS, SmolSizes
from megatron_bar.data.sources import Source
from megatron_bar.data.templates import Name
from megatron_bar.evaluation.generative import TestSet
from megatron_bar.recipes import stages
from megatron_bar.recipes.recipe import Evaluation, ExpertSpec, Recipe, Training
from megatron_bar.recipes.study import Claim, Study
from megatron_bar.rl.grpo import GRPOConfig
from megatron_bar.training.optim import OptimConfig
from megatron_bar.weights.hf_config import ModelConfig

PLACE = Path("runs/real")
SHAPE = ModelConfig(
    family="llama",
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    max_positions=8192,
    rope_theta=100_000.0,
    rms_norm_eps=1e-5,
    dtype="bfloat16",
)
TEMPLATE: Name = "chatml"
ROW = 1024
BATCH = {"sequence": ROW, "batch": 2, "micro_batch": 1, "save_every": 100}
MOST = {
    "tool_use": 96,
    "math": 160,
    "code": 160,
    "safety": 80,
    "instructions": 200,
    "gsm8k": 200,
    "mmlu": 8,
    "bfcl_simple": 96,
    "bfcl_multiple": 96,
    "humaneval": 200,
    "mbpp": 160,
    "harmbench": 80,
}
"""Tests, held-out ones of the generated domains first, and tokens of an answer."""
GENERAL_SKILLS = ("mmlu", "gsm8k", "instructions")
OWN = {
    "tool_use": ("tool_use", "bfcl_simple", "bfcl_multiple"),
    "math": ("math", "gsm8k"),
    "code": ("code", "humaneval", "mbpp"),
    "safety": ("safety", "harmbench"),
}
"""The tests of each expert's own domain; to measure all models by all would take as long as to train them."""
ENDS = {"tool_use": "tool_use-sft", "math": "math-rlvr", "code": "code-rlvr", "safety": "safety-sft"}
"""The step that makes each expert as it is merged."""
ROUTER_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is made, learnt and measured."""

    data: SmolSizes
    real: int
    """Items of each published benchmark."""
    whole: tuple[str, ...]
    """Those of which all are."""
    answer: int
    """Tokens that an own answer may have."""
    most: int
    """Tokens that an answer to a test may have, if not fewer by MOST."""
    rl: GRPOConfig
    route: int
    """Steps of the router."""
    disk: int
    """GB of disk that a run fills with its study."""


FULL = Size(
    data=SmolSizes(),
    real=200,
    whole=("bfcl_simple",),
    answer=200,
    most=max(MOST.values()),
    rl=GRPOConfig(rounds=4, prompts=12, group=8, mini_batches=2, max_new_tokens=128, slots=96),
    route=32,
    disk=30,
)
SMALL = Size(
    data=SmolSizes(
        midtrain=16,
        tool_use=24,
        math=24,
        code=24,
        safety=24,
        rlvr=16,
        general=24,
        harmless=12,
        validation=8,
        test=6,
    ),
    real=4,
    whole=(),
    answer=128,
    most=48,
    rl=GRPOConfig(rounds=1, prompts=4, group=4, mini_batches=1, max_new_tokens=48, slots=16),
    route=2,
    disk=10,
)


def chat(name: str, share: float = 1.0) -> Source:
    return Source(path=Path(f"sft_{name}.jsonl"), kind="chat", domain=name, share=share)


GENERAL = chat("general")


def taught(name: str) -> tuple[Source, ...]:
    """Returns the chats of a domain: of safety also the harmless requests, which the anchor answered."""
    return (chat(name), chat("harmless")) if name == "safety" else (chat(name),)


_asked = partial(Claim, source="this recipe")
CLAIMS = (
    *(
        _asked(
            text=f"the {name} expert beats the anchor on its own domain's held-out items",
            before="anchor",
            after=end,
            skills=(name,),
        )
        for name, end in ENDS.items()
    ),
    _asked(
        text="so does the final model, on every domain",
        before="anchor",
        after="final",
        skills=DOMAINS,
        each=True,
    ),
    _asked(
        text="BFCL's simple calls, real ones, rise by at least 20 points",
        before="anchor",
        after="final",
        skills=("bfcl_simple",),
        margin=0.2,
    ),
    _asked(
        text="general skill (MMLU, GSM8K, instructions) falls by no more than 2 points",
        before="anchor",
        after="final",
        skills=GENERAL_SKILLS,
        expect="not lower",
        margin=0.02,
    ),
    *(
        _asked(
            text=f"the final model keeps at least 90 % of the {name} expert's gain",
            start="anchor",
            before=end,
            after="final",
            skills=(name,),
            expect="not lower",
            keeps=0.9,
        )
        for name, end in ENDS.items()
    ),
    Claim(
        text="without router training the merged model falls short",
        before="merged",
        after="final",
        skills=DOMAINS,
    ),
)


def expert(name: str, size: Size) -> ExpertSpec:
    mid = stages.midtrain(
        optim=OptimConfig(lr=3e-4, schedule="cosine", final_lr_ratio=0.1, warmup=0.05), steps=None, **BATCH
    )
    sft = stages.sft(optim=OptimConfig(lr=3e-4, schedule="linear", warmup=0.03), epochs=1, **BATCH)
    rlvr = stages.rlvr(optim=OptimConfig(lr=3e-5), **BATCH | {"save_every": 4})
    runs = [Training(stage=sft, data=(GENERAL, *taught(name)))]
    if name in ("math", "code"):
        texts = (Source(path=Path(f"midtrain_{name}.jsonl"), kind="text"),)
        tasks = (Source(path=Path(f"rlvr_{name}.jsonl"), kind="task"),)
        runs = [
            Training(stage=mid, data=texts),
            *runs,
            Training(stage=rlvr, data=tasks, rl=size.rl),
        ]
    return ExpertSpec(name=name, runs=tuple(runs))


def bar(name: str, size: Size, place: Path) -> Recipe:
    everything = (GENERAL, *(source for domain in DOMAINS for source in taught(domain)))
    return Recipe(
        name=name,
        data=place / "data",
        shape=SHAPE,
        base=PLACE / "anchor",
        anchor=PLACE / "anchor",
        chat_template=TEMPLATE,
        experts=tuple(expert(domain, size) for domain in DOMAINS),
        route=Training(
            stage=stages.route(
                optim=OptimConfig(lr=2e-2, schedule="linear", warmup=0.03), **BATCH | {"steps": size.route}
            ),
            data=tuple(replace(source, share=ROUTER_SHARE) for source in everything),
        ),
        evaluation=Evaluation(
            tests=tuple(
                TestSet(name=test, path=Path(f"test_{test}.jsonl"), max_new_tokens=min(most, size.most))
                for test, most in MOST.items()
            ),
            slots=128,
            only={end: OWN[name] for name, end in ENDS.items()} | {"merged": DOMAINS},
        ),
        study=Study(claims=CLAIMS, lens={"tool_use": 3, "math": 3, "safety": 3, "bfcl_simple": 3}),
    )


def recipe() -> Recipe:
    return bar("smollm2", FULL, PLACE)


def small() -> Recipe:
    """Returns the same steps on a few rows, in some 15 minutes: nothing is learnt."""
    return bar("smollm2_small", SMALL, PLACE / "small")
