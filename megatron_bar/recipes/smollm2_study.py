"""Does it hold up on a real model? The recipe smollm2 with baselines at equal tokens, an upgrade of the tool
expert, the router's data and seeds, the number of active experts and experts in low rank.

All start from the same anchor and see the same rows. General data, of which each of BAR's experts has all,
a baseline on all domains sees as often.
"""

from dataclasses import replace
from pathlib import Path

from megatron_bar.data.smol import DOMAINS
from megatron_bar.data.sources import Source
from megatron_bar.recipes import smollm2
from megatron_bar.recipes.recipe import ExpertSpec, Recipe, Training
from megatron_bar.recipes.smollm2 import CLAIMS, ENDS, GENERAL, GENERAL_SKILLS
from megatron_bar.recipes.study import Claim, MergeSpec, ScanSpec, Sweep, Upgrade

LEARNT = ("math", "code")
"""Domains with mid-training and RLVR."""
MIXED_EPOCHS = 1.4
"""Epochs of the one mixed SFT: as many tokens as mid-training, SFT and RLVR have together."""
SHARES = (0.01, 0.25)
"""Shares of the SFT data for the router, besides the recipe's own 5 %, at as many steps."""
SEEDS = (1, 2)
"""Of further routers, besides the recipe's own."""
RANKS = (8, 16, 32, 64, 96)
"""Of artifacts in low rank, merged with the routers that were trained for the whole experts; the last takes
23 % of their bytes."""
FEW = 2
SCANNED = 0.05
"""Share of the held-out chats by which a scan chooses the active experts of each layer: two of each domain.
"""
OF_ALL = 1 + len(DOMAINS)
BY_LAYER = "-by_layer"
"""Behind the name of a model whose number of active experts a scan chose layer by layer."""


class _Parts:
    """The runs of the recipe's stages, turned into those of the comparisons."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.runs = {(expert.name, run.stage.name): run for expert in recipe.experts for run in expert.runs}

    def of_all(self, stage: str, *domains: str, policy: str = "dense_all", **changes) -> Training:
        runs = [self.runs[domain, stage] for domain in domains]
        data = sum((run.data for run in runs), ())
        # Source by source, for the stages take every row of a source once an epoch.
        return replace(runs[0], stage=replace(runs[0].stage, policy=policy, **changes), data=data)

    def rlvr(self, *domains: str, policy: str = "dense_all") -> Training:
        run = self.of_all("rlvr", *domains, policy=policy)
        return replace(run, rl=replace(run.rl, rounds=run.rl.rounds * len(domains)))

    def route(self, name: str, start: str, **changes) -> ExpertSpec:
        return ExpertSpec(name=name, start=start, runs=(replace(self.recipe.route, **changes),))


def baselines(parts: _Parts) -> tuple[ExpertSpec | MergeSpec, ...]:
    frozen = [
        ExpertSpec(
            name=f"flex_{domain}",
            start=f"{domain}-midtrain" if domain in LEARNT else "branched",
            runs=(parts.of_all("sft", domain, policy="sft_shared_frozen"),)
            + ((parts.rlvr(domain, policy="rlvr_shared_frozen"),) if domain in LEARNT else ()),
        )
        for domain in DOMAINS
    ]
    return (
        ExpertSpec(
            name="continued",
            start="anchor",
            runs=(parts.of_all("midtrain", *LEARNT), parts.of_all("sft", *DOMAINS), parts.rlvr(*LEARNT)),
        ),
        ExpertSpec(name="mixed", start="anchor", runs=(parts.of_all("sft", *DOMAINS, epochs=MIXED_EPOCHS),)),
        *frozen,
        MergeSpec(
            name="flex-merged",
            inputs={d: spec.end for d, spec in zip(DOMAINS, frozen, strict=True)},
            how="bar",
        ),
        parts.route("flex", "flex-merged"),
    )


def upgrade(parts: _Parts) -> tuple[ExpertSpec | MergeSpec, ...]:
    """Returns an older tool expert, of a quarter of the data, and the model that was merged with it."""
    run = parts.runs["tool_use", "sft"]
    older = tuple(source if source == GENERAL else replace(source, share=0.25) for source in run.data)
    return (
        ExpertSpec(name="tool_use_v1", runs=(replace(run, data=older),)),
        MergeSpec(name="v1-merged", inputs=ENDS | {"tool_use": "tool_use_v1-sft"}, how="bar"),
        parts.route("v1", "v1-merged"),
    )


def router(parts: _Parts) -> tuple[ExpertSpec, ...]:
    route = parts.recipe.route
    return tuple(
        parts.route(
            f"router_{share:g}", "merged", data=tuple(replace(source, share=share) for source in route.data)
        )
        for share in SHARES
    ) + tuple(parts.route(f"seed_{seed}", "merged", stage=replace(route.stage, seed=seed)) for seed in SEEDS)


def by_layer(parts: _Parts) -> tuple[ScanSpec, ...]:
    held_out = tuple(
        Source(path=Path(f"validation_{domain}.jsonl"), kind="chat", domain=domain, share=SCANNED)
        for domain in ("general", *DOMAINS)
    )
    routed = ("final", *(f"seed_{seed}-route" for seed in SEEDS))
    return tuple(
        ScanSpec(name=f"{model}{BY_LAYER}", source=model, validation=held_out, mean=FEW) for model in routed
    )


def low_rank() -> tuple[MergeSpec, ...]:
    return tuple(
        MergeSpec(name=f"rank_{rank}", inputs=ENDS, how="bar", rank=rank, routers="final") for rank in RANKS
    )


def _claim(text: str, before: str, after: str, *skills: str, **more) -> Claim:
    return Claim(text=text, before=before, after=after, skills=skills, **more)


OF_THE_STUDY = (
    _claim(
        "BAR keeps up with continued post-training at equal tokens",
        "continued-rlvr",
        "final",
        *DOMAINS,
        expect="not lower",
        margin=0.03,
    ),
    _claim(
        "BAR keeps up with one mixed SFT at equal tokens",
        "mixed-sft",
        "final",
        *DOMAINS,
        expect="not lower",
        margin=0.03,
    ),
    _claim(
        "BAR keeps more general skill than continued post-training",
        "continued-rlvr",
        "final",
        *GENERAL_SKILLS,
    ),
    _claim(
        "freeing shared parameters stage by stage beats FlexOlmo's recipe", "flex-route", "final", *DOMAINS
    ),
    _claim("a better tool expert makes a better model at tool use", "v1-route", "final", "tool_use"),
    _claim(
        "and leaves the other domains alone",
        "v1-route",
        "final",
        "math",
        "code",
        "safety",
        expect="same",
        margin=0.03,
    ),
    *(
        _claim(
            f"{FEW} of {OF_ALL} active experts, by layer as a scan chose, keep 99 % of the score{of_seed}",
            routed,
            f"{routed}{BY_LAYER}",
            *DOMAINS,
            expect="not lower",
            keeps=0.99,
            source="this recipe",
        )
        for routed, of_seed in (("final", ""), *((f"seed_{n}-route", f" (router seed {n})") for n in SEEDS))
    ),
    *(
        _claim(
            f"experts in rank {rank} keep 95 % of the gain",
            "final",
            f"rank_{rank}",
            *DOMAINS,
            start="anchor",
            expect="not lower",
            keeps=0.95,
            each=True,
            source="arXiv 2602.08818",
        )
        for rank in RANKS
    ),
)


def recipe() -> Recipe:
    return study(smollm2.recipe(), "smollm2_study")


def small() -> Recipe:
    return study(smollm2.small(), "smollm2_small_study")


def study(made: Recipe, name: str) -> Recipe:
    parts = _Parts(made)
    compared = replace(
        made.study,
        baselines={
            "continued post-training on everything": "continued-rlvr",
            "one mixed SFT": "mixed-sft",
            "FlexOlmo (shared always frozen)": "flex-route",
        },
        upgrades=(
            Upgrade(
                name="tool expert v1 to v2",
                before="v1-route",
                after="final",
                changed=("tool_use", "bfcl_simple"),
            ),
        ),
        sweeps=(
            Sweep(
                name="router data",
                x="share of the SFT data",
                skills=DOMAINS,
                points={f"{share:g}": f"router_{share:g}-route" for share in SHARES[:1]}
                | {f"{smollm2.ROUTER_SHARE:g}": "final"}
                | {f"{share:g}": f"router_{share:g}-route" for share in SHARES[1:]},
            ),
            Sweep(
                name="active experts",
                x="active experts",
                skills=DOMAINS,
                points={str(k): f"final@{k}" for k in range(1, OF_ALL)}
                | {f"{FEW} by layer": f"final{BY_LAYER}", str(OF_ALL): "final"},
            ),
            Sweep(
                name="rank of the experts",
                x="rank",
                skills=DOMAINS,
                points={str(rank): f"rank_{rank}" for rank in RANKS} | {"whole": "final"},
            ),
        ),
        claims=(*CLAIMS, *OF_THE_STUDY),
        retrained="continued-rlvr",
    )
    only = {model: DOMAINS for model in compared.models if model not in ("anchor", "final")}
    only |= dict.fromkeys(compared.baselines.values(), DOMAINS + GENERAL_SKILLS)
    only |= {"v1-route": (*DOMAINS, "bfcl_simple")} | made.evaluation.only
    return replace(
        made,
        name=name,
        more=low_rank() + router(parts) + by_layer(parts) + upgrade(parts) + baselines(parts),
        evaluation=replace(made.evaluation, only=only),
        study=compared,
    )
