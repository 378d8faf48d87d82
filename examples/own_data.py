"""One expert on one's own data: the shortest whole recipe, to copy and change.

    torchrun --nproc-per-node 2 examples/pretrain_bar.py examples/own_data.py:recipe --out runs/mine \\
        --set base=runs/tiny/base anchor=runs/tiny/anchor data=runs/tiny/world

As it stands it reads the files of the tiny world, so that it runs after `make demo`; the numbers suit a model
of that size.
"""

from pathlib import Path

from megatron_bar.data.sources import Source
from megatron_bar.recipes import stages
from megatron_bar.recipes.recipe import ExpertSpec, Recipe, Training
from megatron_bar.training.optim import OptimConfig

GENERAL = Source(path=Path("sft_general.jsonl#1000"), kind="chat", domain="general")
DOMAIN = Source(path=Path("sft_math.jsonl"), kind="chat", domain="math")
SMALL = {"sequence": 128, "batch": 4, "micro_batch": 2, "save_every": 200}


def recipe() -> Recipe:
    sft = stages.sft(optim=OptimConfig(lr=1e-3, schedule="linear", warmup=0.03), epochs=1, **SMALL)
    route = stages.route(optim=OptimConfig(lr=1e-2, schedule="linear", warmup=0.03), epochs=2, **SMALL)
    shares = (
        Source(path=Path("sft_general.jsonl"), kind="chat", domain="general", share=0.05),
        Source(path=Path("sft_math.jsonl"), kind="chat", domain="math", share=0.05),
    )
    return Recipe(
        name="mine",
        base=Path("base"),
        anchor=Path("anchor"),
        data=Path("data"),
        experts=(ExpertSpec(name="math", runs=(Training(stage=sft, data=(GENERAL, DOMAIN)),)),),
        route=Training(stage=route, data=shares),
    )
