"""BAR on the five untagged domains of data/untagged.py, in about two minutes on one core: a base for studies
of active experts.

Sizes and rates were chosen on seeds 0 and 1, so that an expert solves its own domain, base and anchor none,
and the routed model all of them. The batch, the learning rates and the router's many steps are the toy's;
what trains in each stage is published.
"""

from dataclasses import replace
from pathlib import Path

from megatron_bar.data.sources import Source
from megatron_bar.data.untagged import DOMAINS, SKILLS, UntaggedSizes
from megatron_bar.evaluation.generative import TestSet
from megatron_bar.recipes import stages
from megatron_bar.recipes.recipe import Evaluation, ExpertSpec, Recipe, Training
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.weights.hf_config import ModelConfig

BATCH = {"sequence": 128, "batch": 8, "micro_batch": 8}
PRETRAIN = 700
POSTTRAIN = 220
SFT = 300
ROUTE = 250
"""Steps."""


def chat(name: str, share: float = 1.0) -> Source:
    return Source(path=Path(f"sft_{name}.jsonl"), kind="chat", domain=name, share=share)


def expert(name: str) -> ExpertSpec:
    stage = stages.sft(optim=OptimConfig(lr=5e-3, schedule="linear", warmup=0.05), steps=SFT, **BATCH)
    return ExpertSpec(name=name, runs=(Training(stage=stage, data=(chat("general"), chat(name))),))


def recipe() -> Recipe:
    pretrain = Stage(
        name="pretrain",
        policy="dense_all",
        optim=OptimConfig(lr=8e-3, schedule="cosine", final_lr_ratio=0.1, warmup=40, weight_decay=0.1),
        packing="cut",
        steps=PRETRAIN,
        **BATCH,
    )
    posttrain = Stage(
        name="posttrain",
        policy="dense_all",
        optim=OptimConfig(lr=4e-3, schedule="linear", warmup=0.05),
        steps=POSTTRAIN,
        **BATCH,
    )
    route = stages.route(optim=OptimConfig(lr=2e-2, schedule="linear", warmup=0.05), steps=ROUTE, **BATCH)
    return Recipe(
        name="untagged",
        seed=2,  # not a world that the hyperparameters were chosen on
        world=UntaggedSizes(),
        shape=ModelConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=192,
            num_layers=3,
            num_heads=4,
            num_kv_heads=4,
            max_positions=256,
            rope_theta=10_000.0,
            rms_norm_eps=1e-6,
            initializer_range=0.12,
        ),
        embedding_std=1.0,
        pretrain=Training(stage=pretrain, data=(Source(path=Path("pretrain.jsonl"), kind="text"),)),
        posttrain=Training(stage=posttrain, data=(chat("general"),)),
        experts=tuple(map(expert, DOMAINS)),
        route=Training(stage=route, data=tuple(replace(chat(name), share=0.5) for name in SKILLS)),
        evaluation=Evaluation(
            tests=tuple(
                TestSet(name=skill, path=Path(f"test_{skill}.jsonl"), max_new_tokens=9) for skill in SKILLS
            ),
            slots=100,
        ),
    )
