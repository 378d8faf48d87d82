"""The whole of BAR from nothing on a laptop: the tiny world, a dense OLMo 2 of its own, four experts, merge,
route, report.

Hyperparameters were chosen for two CPU cores and about 4 M training tokens in all; the shapes of the stages,
what trains in each and the merge are the published ones. GRPO is the published one with smaller batches.
"""

from dataclasses import replace
from pathlib import Path

from megatron_bar.data.sources import Source
from megatron_bar.data.world import DOMAINS, SKILLS
from megatron_bar.evaluation.generative import TestSet
from megatron_bar.recipes import stages
from megatron_bar.recipes.recipe import Evaluation, ExpertSpec, Recipe, Training
from megatron_bar.recipes.study import Claim, Study
from megatron_bar.rl.grpo import GRPOConfig
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.weights.hf_config import ModelConfig

ROW = 128
"""Tokens in a row."""
BATCH = {"sequence": ROW, "batch": 4, "micro_batch": 2, "save_every": 200}


ENDS = {"math": "math-rlvr", "code": "code-rlvr", "tool_use": "tool_use-sft", "safety": "safety-sft"}
"""The step that makes each expert as it is merged."""
CLOSE = 0.03
"""What is still next to nothing; published: about 1 point."""
CLAIMS = (
    Claim(
        text="BAR beats the anchor on every trained skill (31.3 to 49.1 overall)",
        before="anchor",
        after="final",
        skills=DOMAINS,
        each=True,
    ),
    *(
        Claim(
            text=f"merging costs the {name} expert next to nothing on its own domain",
            before=end,
            after="final",
            skills=(name,),
            expect="not lower",
            margin=CLOSE,
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
"""Those of the article that the recipe's own models speak to; in brackets the published scores."""


def chat(name: str, share: float = 1.0) -> Source:
    return Source(path=Path(f"sft_{name}.jsonl"), kind="chat", domain=name, share=share)


GENERAL = chat("general")


PRETRAIN = Stage(
    name="pretrain",
    policy="dense_all",
    optim=OptimConfig(lr=3e-3, schedule="cosine", final_lr_ratio=0.1, warmup=100, weight_decay=0.1),
    packing="cut",
    **BATCH,
)
POSTTRAIN = Stage(
    name="posttrain",
    policy="dense_all",
    optim=OptimConfig(lr=1e-3, schedule="linear", warmup=0.03),
    epochs=3,
    **BATCH,
)


def expert(name: str, *, midtrain: bool) -> ExpertSpec:
    mid = stages.midtrain(
        optim=OptimConfig(lr=2e-3, schedule="cosine", final_lr_ratio=0.1, warmup=0.03),
        steps=None,
        epochs=2,
        **BATCH,
    )
    sft = stages.sft(optim=OptimConfig(lr=1e-3, schedule="linear", warmup=0.03), epochs=1, **BATCH)
    rlvr = stages.rlvr(optim=OptimConfig(lr=1e-4), sequence=ROW, batch=4, micro_batch=4)
    runs = [Training(stage=sft, data=(GENERAL, chat(name)))]
    if midtrain:
        runs.insert(0, Training(stage=mid, data=(Source(path=Path(f"midtrain_{name}.jsonl"), kind="text"),)))
        rl = GRPOConfig(rounds=10, prompts=16, group=8, mini_batches=2, max_new_tokens=60, slots=128)
        runs.append(Training(stage=rlvr, data=(Source(path=Path(f"rlvr_{name}.jsonl"), kind="task"),), rl=rl))
    return ExpertSpec(name=name, runs=tuple(runs))


def recipe() -> Recipe:
    sft = (GENERAL, *(chat(name) for name in DOMAINS))
    return Recipe(
        name="tiny",
        seed=1,  # not the world that the hyperparameters were chosen on
        shape=ModelConfig(
            vocab_size=1000,
            hidden_size=128,
            intermediate_size=384,
            num_layers=4,
            num_heads=4,
            num_kv_heads=4,
            max_positions=512,
            rope_theta=10_000.0,
            rms_norm_eps=1e-6,
            initializer_range=0.09,
        ),
        embedding_std=1.0,
        pretrain=Training(stage=PRETRAIN, data=(Source(path=Path("pretrain.jsonl"), kind="text"),)),
        posttrain=Training(stage=POSTTRAIN, data=(GENERAL,)),
        experts=tuple(expert(name, midtrain=name in ("math", "code")) for name in DOMAINS),
        route=Training(
            # Ten epochs, not two: 5 % of the toy's SFT data is 23 k tokens, where the published run has 43 M.
            stage=stages.route(
                optim=OptimConfig(lr=1e-2, schedule="linear", warmup=0.03), steps=450, **BATCH
            ),
            data=tuple(replace(source, share=0.05) for source in sft),
        ),
        evaluation=Evaluation(
            tests=tuple(
                TestSet(name=skill, path=Path(f"test_{skill}.jsonl"), max_new_tokens=64) for skill in SKILLS
            ),
        ),
        study=Study(claims=CLAIMS, lens=dict.fromkeys(SKILLS, 8)),
    )
