"""Does it hold up? The tiny recipe with every baseline of the article, upgrades, ablations, sweeps, and its
claims.

All of them start from the same base and anchor and see the same rows of each domain. Every SFT, of the
recipe's own experts as of the baselines, has the best of three learning rates by validation loss. Source of
the comparisons: arXiv 2604.18473.
"""

from dataclasses import replace
from pathlib import Path

from megatron_bar.data.sources import Source
from megatron_bar.data.world import DOMAINS
from megatron_bar.recipes import tiny
from megatron_bar.recipes.recipe import ExpertSpec, Recipe, Training
from megatron_bar.recipes.study import Claim, MergeSpec, RouterSpec, Sweep, Upgrade
from megatron_bar.recipes.tiny import BATCH, CLAIMS, CLOSE, ENDS, GENERAL, chat
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.preference import DPOConfig
from megatron_bar.training.stage import Stage

RATES = (3e-4, 1e-3, 3e-3)
GENERAL_SKILLS = ("knowledge", "reasoning", "chat")
SHARES = (0.01, 0.1, 0.25, 0.5, 1.0)
"""Shares of the SFT data for the router, besides the recipe's own 5 %."""
COLLAPSE = 0.05
"""What is lost at least where something collapses; published: 10 to 18 points."""
MIXED = 0.15
"""Share of the pretraining text in the retrained model's mid-training: about as many tokens as of each
domain."""
DPO = Stage(
    name="dpo",
    policy="dense_all",
    optim=OptimConfig(lr=3e-5, schedule="linear", warmup=0.03),
    too_long="drop",
    **(BATCH | {"sequence": 256}),
)


def validation(*domains: str) -> tuple[Source, ...]:
    return tuple(
        Source(path=Path(f"validation_{d}.jsonl"), kind="chat", domain=d) for d in ("general", *domains)
    )


class Parts:
    """The runs of the tiny recipe's stages, turned into those of the comparisons."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.runs = {(expert.name, run.stage.name): run for expert in recipe.experts for run in expert.runs}

    def midtrain(self, *domains: str, general: float = 0.0) -> Training:
        """``general``: the share of the pretraining text that is mixed in."""
        run = self._of_all("midtrain", "dense_all", *domains)
        mixed = (replace(self.recipe.pretrain.data[0], share=general),) if general else ()
        return replace(run, data=run.data + mixed)

    def sft(self, *domains: str, policy: str = "dense_all", general: int = 1) -> Training:
        """On these domains' data once and the general data ``general`` times, with the best of three learning
        rates."""
        run = self._of_all("sft", policy, *domains)
        data = (*[GENERAL] * general, *(source for source in run.data if source != GENERAL))
        return replace(run, data=data, rates=RATES, validation=validation(*domains))

    def rlvr(self, *domains: str, policy: str = "dense_all") -> Training:
        """Returns RLVR with as many rounds for each domain as its expert has."""
        run = self._of_all("rlvr", policy, *domains)
        return replace(run, rl=replace(run.rl, rounds=run.rl.rounds * len(domains)))

    def dpo(self) -> Training:
        return Training(
            stage=DPO, data=(Source(path=Path("preferences.jsonl"), kind="preference"),), dpo=DPOConfig()
        )

    def _of_all(self, stage: str, policy: str, *domains: str) -> Training:
        runs = [self.runs[domain, stage] for domain in domains]
        return replace(
            runs[0], stage=replace(runs[0].stage, policy=policy), data=sum((run.data for run in runs), ())
        )

    def route(self, name: str, start: str, **changes) -> ExpertSpec:
        return ExpertSpec(name=name, start=start, runs=(replace(self.recipe.route, **changes),))

    def routed(self, name: str, inputs: dict[str, str], **how) -> tuple[MergeSpec | ExpertSpec, ...]:
        """Merged, and its router trained on 5 % of what its experts learnt: the model ``name``-route."""
        kind = {"how": "bar"} | how
        domains = ("general", *inputs) if kind["how"] == "bar" else ("general", *DOMAINS)
        data = tuple(source for source in self.recipe.route.data if source.domain in domains)
        return (
            MergeSpec(name=f"{name}-merged", inputs=inputs, **kind),
            self.route(name, f"{name}-merged", data=data),
        )


def baselines(parts: Parts) -> tuple[ExpertSpec | MergeSpec, ...]:
    learnt = [domain for domain in DOMAINS if (domain, "midtrain") in parts.runs]

    def dense(name: str, start: str, *runs: Training) -> ExpertSpec:
        return ExpertSpec(name=name, start=start, runs=runs)

    # Mid-trained experts start from the base, as BAR's do; what is only post-trained goes on from the anchor.
    single = {
        **{
            f"dense_{d}": dense(f"dense_{d}", "base", parts.midtrain(d), parts.sft(d), parts.rlvr(d))
            for d in learnt
        },
        **{
            f"dense_{d}_post": dense(f"dense_{d}_post", "anchor", parts.sft(d), parts.rlvr(d)) for d in learnt
        },
        **{f"dense_{d}": dense(f"dense_{d}", "anchor", parts.sft(d)) for d in DOMAINS if d not in learnt},
    }
    ends = {d: single[f"dense_{d}"].end for d in DOMAINS}
    post_trained = ends | {d: single[f"dense_{d}_post"].end for d in learnt}
    frozen = [
        ExpertSpec(
            name=f"flex_{d}",
            start=f"{d}-midtrain" if d in learnt else "branched",
            runs=(parts.sft(d, policy="sft_shared_frozen"),)
            + ((parts.rlvr(d, policy="rlvr_shared_frozen"),) if d in learnt else ()),
        )
        for d in DOMAINS
    ]
    # From the base: what the anchor saw of the general data before, they see besides; mid-training is a mix,
    # as published.
    post = (
        parts.sft(*DOMAINS, general=1 + round(parts.recipe.posttrain.stage.epochs)),
        parts.dpo(),
        parts.rlvr(*learnt),
    )
    return (
        dense("retrain", "base", parts.midtrain(*learnt, general=MIXED), *post),
        dense("retrain_post", "base", *post),
        dense("continued", "anchor", parts.sft(*DOMAINS), parts.rlvr(*learnt)),
        *single.values(),
        MergeSpec(name="dense_merge", inputs=post_trained, how="dense"),
        MergeSpec(name="dense_merge_midtrain", inputs=ends, how="dense"),
        *parts.routed("btx", {"anchor": "anchor", **ends}, how="btx"),
        # The weaker variant: what is shared is the first-listed expert's, which was the tool-use one.
        *parts.routed("btx_first", {"anchor": "anchor", **ends}, how="btx", shared_from="tool_use"),
        *frozen,
        *parts.routed("flexolmo", {spec.name.removeprefix("flex_"): spec.end for spec in frozen}),
    )


def ablations(parts: Parts) -> tuple[ExpertSpec | MergeSpec, ...]:
    route = parts.recipe.route
    found = []
    for d in DOMAINS:
        run = replace(parts.runs[d, "sft"], data=(chat(d),), validation=validation(d)[1:])
        start = f"{d}-midtrain" if (d, "midtrain") in parts.runs else "branched"
        found.append(ExpertSpec(name=f"{d}_only", start=start, runs=(run,)))
    for share in SHARES:
        data = tuple(replace(source, share=share) for source in route.data)
        found.append(parts.route(f"router_{share:g}", "merged", data=data))
    names = list(ENDS)
    for count in range(1, len(names)):
        found += parts.routed(f"first_{count}", {name: ENDS[name] for name in names[:count]})
    return tuple(found)


def untrained(parts: Parts) -> tuple[RouterSpec, ...]:
    """What a router does before any training; published: the experts' own rows, which started as domain
    embeddings."""
    texts = parts.recipe.route.data
    unseen = validation(*DOMAINS)
    return tuple(
        RouterSpec(
            name=f"untrained_{kind}",
            source="merged",
            kind=kind,
            texts=texts if kind in ("embedding", "hidden") else (),
            validation=unseen,
        )
        for kind in ("zero", "copied", "embedding", "hidden")
    )


def upgrades(parts: Parts) -> tuple[ExpertSpec | MergeSpec, ...]:
    """The models as they were before: math without RLVR, and an older code expert, of a quarter of the data
    and SFT alone."""
    old = replace(
        parts.runs["code", "sft"],
        data=(GENERAL, Source(path=Path("sft_code.jsonl#500"), kind="chat", domain="code")),
    )
    return (
        ExpertSpec(name="code_old", runs=(old,)),
        *parts.routed("before_math_rlvr", ENDS | {"math": "math-sft"}),
        *parts.routed("before_code", ENDS | {"code": "code_old-sft"}),
    )


BASELINES = {
    "retrain with mid-training": "retrain-rlvr",
    "retrain, post-training only": "retrain_post-rlvr",
    "continued post-training": "continued-rlvr",
    "BTX (shared averaged)": "btx-route",
    "BTX (shared of the first-listed)": "btx_first-route",
    "FlexOlmo (shared always frozen)": "flexolmo-route",
    "dense merge, no mid-training": "dense_merge",
    "dense merge after mid-training": "dense_merge_midtrain",
}
ABLATIONS = {
    **{f"{d} expert, SFT on its domain alone": f"{d}_only-sft" for d in DOMAINS},
    "math expert before RLVR": "math-sft",
    "code expert before RLVR": "code-sft",
    "tool-use expert, embeddings and head frozen": "flex_tool_use-sft",
    "retrain with mid-training, after SFT": "retrain-sft",
    "retrain with mid-training, after DPO": "retrain-dpo",
    "math expert of FlexOlmo before RLVR": "flex_math-sft",
    "math expert of FlexOlmo": "flex_math-rlvr",
}
SWEEPS = (
    Sweep(
        name="active experts of the final model",
        x="active experts",
        points={f"{k}": f"final@{k}" for k in (1, 2, 3, 4)} | {"5": "final"},
    ),
    Sweep(
        name="data of the router, at equal steps",
        x="share of the SFT data, percent",
        points={"1": "router_0.01-route", "5": "final"}
        | {f"{100 * s:g}": f"router_{s:g}-route" for s in SHARES[1:]},
    ),
    Sweep(
        name="routers that nobody trained",
        x="rows",
        points={kind: f"untrained_{kind}" for kind in ("zero", "copied", "embedding", "hidden")}
        | {"trained": "final"},
    ),
    Sweep(
        name="experts added one by one",
        x="experts beside the anchor",
        points={
            "0": "anchor",
            "1": "first_1-route",
            "2": "first_2-route",
            "3": "first_3-route",
            "4": "final",
        },
    ),
)
MATH_RLVR = Upgrade(
    name="RLVR on the math expert", before="before_math_rlvr-route", after="final", changed=("math",)
)
BETTER_CODE = Upgrade(
    name="a better code expert", before="before_code-route", after="final", changed=("code",)
)


def claim(text: str, before: str, after: str, *skills: str, **judged) -> Claim:
    """Judged on ``skills``; none: on all."""
    return Claim(text=text, before=before, after=after, skills=skills, **judged)


def of_upgrade(upgrade: Upgrade, text: str) -> tuple[Claim, Claim]:
    """``text``: what it does to the skills that it should change; the others it should leave as they were."""
    others = [skill for skill in (*GENERAL_SKILLS, *DOMAINS) if skill not in upgrade.changed]
    same = {"expect": "same", "margin": CLOSE, "each": True}
    return (
        claim(text, upgrade.before, upgrade.after, *upgrade.changed),
        claim("and leaves the other skills within about 1", upgrade.before, upgrade.after, *others, **same),
    )


# Those of the article that speak of models which are here; the numbers in brackets are the published ones.
OF_BASELINES = (
    claim(
        "BAR comes close to retraining with mid-training (49.1 against 50.5)",
        "retrain-rlvr",
        "final",
        expect="not lower",
        margin=CLOSE,
    ),
    claim(
        "BAR beats retraining of the post-training alone (49.1 against 47.8)", "retrain_post-rlvr", "final"
    ),
    claim("BAR beats continued post-training (49.1 against 45.3)", "continued-rlvr", "final"),
    claim("BAR beats BTX, shared parameters averaged (49.1 against 46.7)", "btx-route", "final"),
    claim(
        "BAR beats BTX as the authors ran it, shared parameters of the first-listed",
        "btx_first-route",
        "final",
    ),
    claim(
        "freeing shared parameters stage by stage beats FlexOlmo's recipe, which freezes them (its motive, "
        "no number)",
        "flexolmo-route",
        "final",
    ),
    claim("dense merging falls short of BAR (36.9 against 49.1)", "dense_merge", "final"),
    claim(
        "dense merging after mid-training collapses (6.5, the anchor has 31.3)",
        "anchor",
        "dense_merge_midtrain",
        expect="lower",
        margin=COLLAPSE,
    ),
)
OF_STAGES = (
    *(
        claim(
            f"SFT of the {name} expert on its domain alone costs general skill (25.8-32.8 against 36.8-38.5)",
            f"{name}_only-sft",
            f"{name}-sft",
            *GENERAL_SKILLS,
        )
        for name in DOMAINS
    ),
    claim(
        "tool use needs free embeddings and head (20.3 to 46.4)",
        "flex_tool_use-sft",
        "tool_use-sft",
        "tool_use",
    ),
    claim("RLVR improves the math expert (41.9 to 55.8)", "math-sft", "math-rlvr", "math"),
    claim(
        "RLVR with all shared parameters frozen learns nothing (a completely flat reward curve)",
        "flex_math-sft",
        "flex_math-rlvr",
        "math",
        expect="same",
        margin=CLOSE,
    ),
)
OF_THE_ROUTER = (
    claim(
        "5 % of the data are enough for the router (49.1; with all of it 47.6)",
        "router_1-route",
        "final",
        expect="not lower",
        margin=CLOSE,
    ),
    claim(
        "4 of 5 active experts are nearly identical to 5 (48.2 and 48.8)",
        "final",
        "final@4",
        expect="same",
        margin=CLOSE,
    ),
    *(
        claim(
            f"with {k} of 5 experts active it collapses ({score}, with 5 48.8)",
            "final",
            f"final@{k}",
            expect="lower",
            margin=COLLAPSE,
        )
        for k, score in ((3, 36.8), (2, 38.8), (1, 31.1))
    ),
)
OF_CHANGES = (
    claim(
        "late RL of the monolithic pipeline degrades the safety learnt before",
        "retrain-dpo",
        "retrain-rlvr",
        "safety",
        expect="lower",
    ),
    *of_upgrade(BETTER_CODE, "a better code expert raises code (33.4 to 49.9)"),
    *of_upgrade(MATH_RLVR, "RLVR on the math expert raises math in the merged model (43.2 to 56.2)"),
    claim("the third expert raises the overall score (42.3 to 46.5)", "first_2-route", "first_3-route"),
    claim("the fourth expert raises the overall score (46.5 to 48.8)", "first_3-route", "final"),
    claim("chat is BAR's weak spot (48.9 falls to 38.7)", "anchor", "final", "chat", expect="lower"),
)
OF_BENCHMARKS = Claim(
    text="the published scores on the 19 benchmarks",
    untestable="they need the 7B models and a GPU: bar evaluate --suite bar19",
)


def with_rates(expert: ExpertSpec) -> ExpertSpec:
    """The same with the best of three learning rates for its SFT."""
    runs = (
        replace(r, rates=RATES, validation=validation(expert.name)) if r.stage.name == "sft" else r
        for r in expert.runs
    )
    return replace(expert, runs=tuple(runs))


def recipe() -> Recipe:
    made = tiny.recipe()
    made = replace(made, experts=tuple(map(with_rates, made.experts)))
    parts = Parts(made)
    study = replace(
        made.study,
        baselines=BASELINES,
        ablations=ABLATIONS,
        upgrades=(MATH_RLVR, BETTER_CODE),
        sweeps=SWEEPS,
        claims=(*CLAIMS, *OF_BASELINES, *OF_STAGES, *OF_THE_ROUTER, *OF_CHANGES, OF_BENCHMARKS),
        retrained="retrain-rlvr",
    )
    more = baselines(parts) + upgrades(parts) + ablations(parts) + untrained(parts)
    return replace(made, name="tiny_study", more=more, study=study)
