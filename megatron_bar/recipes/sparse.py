"""How few active experts does a merged model need, and what must its router learn for that?

On the untagged domains: routers trained at all experts (published), at two, at numbers drawn anew for every
batch, with and without a dense gradient, over experts trained as published and with k-dropout; routers that
nobody trained; numbers of experts layer by layer. Every trained one has the best of three learning rates by
validation loss: the published at all experts, the others at two and at all.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from megatron_bar.data.sources import Source
from megatron_bar.data.untagged import DOMAINS, SKILLS
from megatron_bar.recipes import untagged
from megatron_bar.recipes.recipe import ExpertSpec, Recipe, Training
from megatron_bar.recipes.study import ACTIVE, Claim, MergeSpec, RouterSpec, Study, Sweep
from megatron_bar.training.stage import Stage

Drift = Literal["published", "large"]
DRIFTS: tuple[Drift, ...] = get_args(Drift)
RATES = (7e-3, 2e-2, 6e-2)
ALL = 1 + len(DOMAINS)
FEW = 2
ALONE = 0.3
"""Share of an expert's steps that it trains alone in."""
TRAINED = {
    "all": {},
    "two": {"active_experts": FEW},
    "two_dense": {"active_experts": FEW, "router_gradient": "dense"},
    "sampled_dense": {"active_experts": "sampled", "router_gradient": "dense"},
}
"""How a router is trained; ``all`` is the published way."""
EXPERTS = {"plain": "merged", "alone": "alone-merged"}
"""How the experts were trained -> the step that merges them."""
UNTRAINED = ("zero", "copied", "embedding", "hidden")
LAYERED = {"5,2,2": (5, 2, 2), "2,5,2": (2, 5, 2), "2,2,5": (2, 2, 5)}
"""All experts in one layer, two in the others."""
FOUND = {(experts, way): f"{experts}_{way}-route" for experts, way in product(EXPERTS, TRAINED)} | {
    ("plain", "all"): "final"
}
"""The step that makes each trained router's model."""


def at(model: str, k: int) -> str:
    return f"{model}{ACTIVE}{k}"


def held_out(name: str) -> Source:
    return Source(path=Path(f"validation_{name}.jsonl"), kind="chat", domain=name)


def expert(spec: ExpertSpec, drift: Drift, *, alone: float = 0.0) -> ExpertSpec:
    (run,) = spec.runs
    stage = replace(run.stage, alone=alone, policy="rlvr" if drift == "large" else run.stage.policy)
    return ExpertSpec(name=f"{spec.name}_alone" if alone else spec.name, runs=(replace(run, stage=stage),))


def routed(run: Training, stage: Stage, *, chosen_at: tuple[int, ...]) -> Training:
    validation = tuple(held_out(name) for name in SKILLS)
    return replace(run, stage=stage, rates=RATES, validation=validation, chosen_at=chosen_at)


def untrained(kind: str) -> RouterSpec:
    texts = tuple(untagged.chat(name, 0.2) for name in SKILLS) if kind in ("embedding", "hidden") else ()
    validation = tuple(held_out(name) for name in SKILLS)
    return RouterSpec(
        name=f"untrained_{kind}", source="merged", kind=kind, texts=texts, validation=validation
    )


def published() -> Recipe:
    return study("published")


def large() -> Recipe:
    return study("large")


recipe = published


def study(drift: Drift) -> Recipe:
    """``large``: everything that is shared trains, as in RLVR, from an expert's first step on."""
    made = untagged.recipe()
    experts = tuple(expert(spec, drift) for spec in made.experts)
    with_dropout = tuple(expert(spec, drift, alone=ALONE) for spec in made.experts)
    merged = MergeSpec(
        name="alone-merged", inputs={s.name.removesuffix("_alone"): s.end for s in with_dropout}, how="bar"
    )
    routers = tuple(
        ExpertSpec(
            name=f"{experts}_{way}",
            start=EXPERTS[experts],
            runs=(routed(made.route, replace(made.route.stage, **TRAINED[way]), chosen_at=(FEW, ALL)),),
        )
        for experts, way in FOUND
        if (experts, way) != ("plain", "all")
    )
    return replace(
        made,
        name=f"sparse_{drift}",
        experts=experts,
        route=routed(made.route, made.route.stage, chosen_at=(ALL,)),
        more=(*with_dropout, merged, *routers, *map(untrained, UNTRAINED)),
        study=Study(
            ablations={f"{d} expert with k-dropout": f"{d}_alone-sft" for d in DOMAINS},
            sweeps=(
                *(
                    Sweep(name=f"{experts} experts, router {way}", x="active experts", points=points(model))
                    for (experts, way), model in FOUND.items()
                ),
                *(
                    Sweep(
                        name=f"routers not trained, {k} active experts",
                        x="rows",
                        points={kind: at(f"untrained_{kind}", k) for kind in UNTRAINED},
                    )
                    for k in (FEW, ALL)
                ),
                Sweep(
                    name="active experts layer by layer, published router",
                    x="layers",
                    points={name: f"final{ACTIVE}{name}" for name in LAYERED},
                ),
            ),
            claims=tuple(
                Claim(
                    text=f"k-dropout costs the {d} expert nothing with both experts active",
                    before=f"{d}-sft",
                    after=f"{d}_alone-sft",
                    skills=(d,),
                    expect="not lower",
                    margin=0.03,
                )
                for d in DOMAINS
            ),
        ),
    )


def points(model: str) -> dict[str, str]:
    return {str(k): at(model, k) for k in range(1, ALL + 1)}
