"""A fifth expert for the tiny recipe: a second safety expert, on the same data with another seed, to show
what adding takes.

torchrun --nproc-per-node 2 examples/pretrain_bar.py examples/add_expert.py:recipe --out runs/more
"""

from dataclasses import replace

from megatron_bar.recipes import tiny
from megatron_bar.recipes.recipe import ExpertSpec, Recipe


def recipe() -> Recipe:
    known = tiny.recipe()
    safety = next(expert for expert in known.experts if expert.name == "safety")
    runs = tuple(replace(run, stage=replace(run.stage, seed=1)) for run in safety.runs)
    return replace(
        known, name="tiny_and_one", experts=(*known.experts, ExpertSpec(name="caution", runs=runs))
    )
