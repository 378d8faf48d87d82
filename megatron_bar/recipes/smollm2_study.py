"""Does it hold up on a real model? The recipe smollm2 with baselines at equal tokens, an upgrade of the tool
expert, the router's data and seeds, the number of active experts and experts in low rank.

All start from the same anchor and see the same rows. General data, of which each of BAR's experts has all,
a baseline on all domains sees as often.

    make real-study      # all of it, hours
    bar run megatron_bar.recipes.smollm2_study:low_rank --out runs/real/run

The second is one piece, in the folder of `smollm2`; its report is in study/low_rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_bar.data.smol import DOMAINS
from megatron_bar.data.sources import Source
from megatron_bar.recipes import smollm2
from megatron_bar.recipes.recipe import ExpertSpec, Recipe, Training
from megatron_bar.recipes.smollm2 import ENDS, GENERAL, GENERAL_SKILLS
from megatron_bar.recipes.study import Claim, MergeSpec, ScanSpec, Study, Sweep, Upgrade

LEARNT = ("math", "code")
"""Domains with mid-training and RLVR."""
MIXED_EPOCHS = 1.4
"""Epochs of the one mixed SFT: as many tokens as mid-training, SFT and RLVR have together."""
SHARES = (0.01, 0.25)
"""Shares of the SFT data for the router, besides the recipe's own 5 %, at as many steps."""
SEEDS = (1, 2)
"""Of further routers, besides the recipe's own."""
RANKS = (8, 16, 32, 64, 96, 192)
"""Of artifacts in low rank, merged with the routers that were trained for the whole experts; 96 takes 23 % of
their bytes."""
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


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """What is made and asked together."""

    more: tuple[ExpertSpec | MergeSpec | ScanSpec, ...] = ()
    baselines: Mapping[str, str] = field(default_factory=dict)
    upgrades: tuple[Upgrade, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    claims: tuple[Claim, ...] = ()
    retrained: str = ""


def _claim(text: str, before: str, after: str, *skills: str, **more) -> Claim:
    return Claim(text=text, before=before, after=after, skills=skills, **more)


def _low_rank(parts: _Parts) -> _Piece:
    """Experts in low rank, with the routers that were trained for the whole ones."""
    return _Piece(
        more=tuple(
            MergeSpec(name=f"rank_{rank}", inputs=ENDS, how="bar", rank=rank, routers="final")
            for rank in RANKS
        ),
        sweeps=(
            Sweep(
                name="rank of the experts",
                x="rank",
                skills=DOMAINS,
                points={str(rank): f"rank_{rank}" for rank in RANKS} | {"whole": "final"},
            ),
        ),
        claims=tuple(
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


def _few(parts: _Parts) -> _Piece:
    """Few active experts, with the recipe's router and others."""
    route = parts.recipe.route
    held_out = tuple(
        Source(path=Path(f"validation_{domain}.jsonl"), kind="chat", domain=domain, share=SCANNED)
        for domain in ("general", *DOMAINS)
    )
    routed = {"final": ""} | {f"seed_{seed}-route": f" (router seed {seed})" for seed in SEEDS}
    return _Piece(
        more=(
            *(parts.route(f"seed_{seed}", "merged", stage=replace(route.stage, seed=seed)) for seed in SEEDS),
            *(
                ScanSpec(name=f"{model}{BY_LAYER}", source=model, validation=held_out, mean=FEW)
                for model in routed
            ),
        ),
        sweeps=(
            Sweep(
                name="active experts",
                x="active experts",
                skills=DOMAINS,
                points={str(k): f"final@{k}" for k in range(1, OF_ALL)}
                | {f"{FEW} by layer": f"final{BY_LAYER}", str(OF_ALL): "final"},
            ),
        ),
        claims=tuple(
            _claim(
                f"{FEW} of {OF_ALL} experts, by layer as a scan chose, keep 99 % of the score{of_seed}",
                model,
                f"{model}{BY_LAYER}",
                *DOMAINS,
                expect="not lower",
                keeps=0.99,
                source="this recipe",
            )
            for model, of_seed in routed.items()
        ),
    )


def _router(parts: _Parts) -> _Piece:
    """The router's share of the data."""
    data = parts.recipe.route.data
    return _Piece(
        more=tuple(
            parts.route(
                f"router_{share:g}", "merged", data=tuple(replace(source, share=share) for source in data)
            )
            for share in SHARES
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
        ),
    )


def _upgrade(parts: _Parts) -> _Piece:
    """An older tool expert, of a quarter of the data, and the model that was merged with it."""
    run = parts.runs["tool_use", "sft"]
    older = tuple(source if source == GENERAL else replace(source, share=0.25) for source in run.data)
    return _Piece(
        more=(
            ExpertSpec(name="tool_use_v1", runs=(replace(run, data=older),)),
            MergeSpec(name="v1-merged", inputs=ENDS | {"tool_use": "tool_use_v1-sft"}, how="bar"),
            parts.route("v1", "v1-merged"),
        ),
        upgrades=(
            Upgrade(
                name="tool expert v1 to v2",
                before="v1-route",
                after="final",
                changed=("tool_use", "bfcl_simple"),
            ),
        ),
        claims=(
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
        ),
    )


def _baselines(parts: _Parts) -> _Piece:
    """Others at equal tokens."""
    frozen = [
        ExpertSpec(
            name=f"flex_{domain}",
            start=f"{domain}-midtrain" if domain in LEARNT else "branched",
            runs=(parts.of_all("sft", domain, policy="sft_shared_frozen"),)
            + ((parts.rlvr(domain, policy="rlvr_shared_frozen"),) if domain in LEARNT else ()),
        )
        for domain in DOMAINS
    ]
    more = (
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
    return _Piece(
        more=more,
        baselines={
            "continued post-training on everything": "continued-rlvr",
            "one mixed SFT": "mixed-sft",
            "FlexOlmo (shared always frozen)": "flex-route",
        },
        claims=(
            *(
                _claim(
                    f"BAR keeps up with {name} at equal tokens",
                    model,
                    "final",
                    *DOMAINS,
                    expect="not lower",
                    margin=0.03,
                )
                for name, model in (
                    ("continued post-training", "continued-rlvr"),
                    ("one mixed SFT", "mixed-sft"),
                )
            ),
            _claim(
                "BAR keeps more general skill than continued post-training",
                "continued-rlvr",
                "final",
                *GENERAL_SKILLS,
            ),
            _claim(
                "freeing shared parameters stage by stage beats FlexOlmo's recipe",
                "flex-route",
                "final",
                *DOMAINS,
            ),
        ),
        retrained="continued-rlvr",
    )


PIECES = {
    "low_rank": _low_rank,
    "few": _few,
    "router": _router,
    "upgrade": _upgrade,
    "baselines": _baselines,
}


def study(made: Recipe, piece: str | None = None) -> Recipe:
    """Returns ``made`` with a piece of the study, or with all of it."""
    parts = _Parts(made)
    pieces = [make(parts) for name, make in PIECES.items() if piece in (None, name)]
    asked = Study(
        folder=f"study/{piece}" if piece else "study",
        baselines={name: model for part in pieces for name, model in part.baselines.items()},
        upgrades=sum((part.upgrades for part in pieces), ()),
        sweeps=sum((part.sweeps for part in pieces), ()),
        claims=sum((part.claims for part in pieces), ()),
        retrained="".join(part.retrained for part in pieces),
    )
    only = {model: DOMAINS for model in asked.models if model not in ("anchor", "final")}
    only |= dict.fromkeys(asked.baselines.values(), DOMAINS + GENERAL_SKILLS)
    only |= {upgrade.before: (*DOMAINS, "bfcl_simple") for upgrade in asked.upgrades}
    return replace(
        made,
        name=f"{made.name}_{piece or 'study'}",
        more=sum((part.more for part in pieces), ()),
        evaluation=replace(made.evaluation, only=only | made.evaluation.only),
        study=asked,
    )


def recipe() -> Recipe:
    return study(smollm2.recipe())


def small() -> Recipe:
    return study(smollm2.small())


def low_rank() -> Recipe:
    return study(smollm2.recipe(), "low_rank")


def few() -> Recipe:
    return study(smollm2.recipe(), "few")


def router() -> Recipe:
    return study(smollm2.recipe(), "router")


def upgrade() -> Recipe:
    return study(smollm2.recipe(), "upgrade")


def baselines() -> Recipe:
    return study(smollm2.recipe(), "baselines")
