"""Ten steps of everything, for a new machine's first hour: does each part of a run work here?

All is made by itself, small, in bfloat16, with recomputation, a checkpoint in the middle of every stage, and
two experts: one through mid-training, SFT and RLVR with the sandbox, one through SFT alone. Nothing is
learnt. A batch of 16 rows divides over 1, 2, 4, 8 or 16 data-parallel ranks; layouts are values, and in bash
two words name all stages:

    torchrun --nproc-per-node 8 -m megatron_bar run smoke --out runs/smoke \\
        --set {pretrain,posttrain,route}.parallel.tensor=2 'experts.*.*.parallel.tensor=2'
    bar run smoke --out runs/fp32 --set shape.dtype=float32
"""

from pathlib import Path

from megatron_bar.data.sources import Source
from megatron_bar.data.world import WorldSizes
from megatron_bar.evaluation.generative import TestSet
from megatron_bar.recipes import stages
from megatron_bar.recipes.recipe import Evaluation, ExpertSpec, Recipe, Training
from megatron_bar.recipes.study import Study
from megatron_bar.rl.grpo import GRPOConfig
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.weights.hf_config import ModelConfig

SMALL = {
    "optim": OptimConfig(lr=1e-3, schedule="linear", warmup=2),
    "sequence": 64,
    "batch": 16,
    "steps": 10,
    "save_every": 5,
    "recompute": True,
}
RL = GRPOConfig(rounds=2, prompts=16, group=8, mini_batches=2, max_new_tokens=16)
CHANCE = Source(path=Path(__file__).with_name("smoke_tasks.jsonl"), kind="task")
"""Tasks that any model solves sometimes: without them no group would differ, and nothing would train."""


def chat(name: str) -> Source:
    return Source(path=Path(f"sft_{name}.jsonl"), kind="chat", domain=name)


def recipe() -> Recipe:
    text = (Source(path=Path("pretrain.jsonl"), kind="text"),)
    mid = Training(
        stage=stages.midtrain(**SMALL), data=(Source(path=Path("midtrain_code.jsonl"), kind="text"),)
    )
    sft = Training(stage=stages.sft(**SMALL), data=(chat("general"), chat("code")))
    # No steps: RLVR makes as many as its rounds ask for.
    rlvr = stages.rlvr(**SMALL | {"steps": None, "save_every": 1, "sequence": 128})
    tasks = (CHANCE, Source(path=Path("rlvr_code.jsonl"), kind="task"))
    return Recipe(
        name="smoke",
        world=WorldSizes(
            pretrain=600,
            midtrain=100,
            sft_general=100,
            sft_domain=60,
            rlvr=16,
            preferences=7,
            validation=7,
            test=8,
        ),
        shape=ModelConfig(
            vocab_size=1000,
            hidden_size=128,
            intermediate_size=256,
            num_layers=4,
            num_heads=8,
            num_kv_heads=8,
            max_positions=512,
            rope_theta=10_000.0,
            rms_norm_eps=1e-6,
            dtype="bfloat16",
        ),
        pretrain=Training(
            stage=Stage(name="pretrain", policy="dense_all", packing="cut", **SMALL), data=text
        ),
        posttrain=Training(
            stage=Stage(name="posttrain", policy="dense_all", **SMALL), data=(chat("general"),)
        ),
        experts=(
            ExpertSpec(name="code", runs=(mid, sft, Training(stage=rlvr, data=tasks, rl=RL))),
            ExpertSpec(
                name="math", runs=(Training(stage=stages.sft(**SMALL), data=(chat("general"), chat("math"))),)
            ),
        ),
        route=Training(stage=stages.route(**SMALL), data=(chat("general"), chat("code"), chat("math"))),
        evaluation=Evaluation(
            tests=tuple(
                TestSet(name=name, path=Path(f"test_{name}.jsonl"), max_new_tokens=16)
                for name in ("chat", "code", "math")
            )
        ),
        study=Study(lens={"code": 1}),
    )
