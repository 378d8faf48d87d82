"""The tiny study, every stage cut down to a step or two and only one comparison of each kind left: seconds,
not an hour."""

from dataclasses import replace

from megatron_bar.data.world import WorldSizes
from megatron_bar.recipes import tiny_study
from megatron_bar.recipes.recipe import ExpertSpec, Recipe, Training
from megatron_bar.recipes.study import Claim, MergeSpec, RouterSpec, ScanSpec, Study, Sweep, Upgrade

WORLD = WorldSizes(
    pretrain=600, midtrain=100, sft_general=60, sft_domain=40, rlvr=20, preferences=40, validation=10, test=4
)
KEPT = (
    "retrain",
    "dense_tool_use",
    "dense_safety",
    "btx_first-merged",
    "btx_first",
    "flex_tool_use",
    "code_old",
    "before_code-merged",
    "before_code",
    "untrained_hidden",
)


def small(run: Training | None) -> Training | None:
    if run is None:
        return None
    rl = run.rl and replace(run.rl, rounds=1, prompts=2, group=2, max_new_tokens=4)
    data = tuple(
        replace(source, path=source.place) for source in run.data
    )  # without "#500": there are fewer rows
    return replace(run, stage=replace(run.stage, steps=2), data=data, rl=rl, rates=run.rates[:2])


def recipe() -> Recipe:
    made = tiny_study.recipe()

    def cut(part):
        if isinstance(part, ExpertSpec):
            return replace(part, runs=tuple(map(small, part.runs)))
        if isinstance(part, RouterSpec):
            return replace(part, scales=part.scales[:2])
        kept = {
            name: step
            for name, step in part.inputs.items()
            if name in ("anchor", "tool_use", "safety") or part.how == "bar"
        }
        return replace(part, inputs=kept)

    dense = MergeSpec(
        name="dense_merge",
        inputs={"tool_use": "dense_tool_use-sft", "safety": "dense_safety-sft"},
        how="dense",
    )
    ends = {expert.name: expert.end for expert in made.experts}
    rank2 = MergeSpec(name="rank2", inputs=ends, how="bar", rank=2, routers="final")
    few = ScanSpec(name="few", source="final", validation=tiny_study.validation("math"), mean=2)
    tests = tuple(replace(test, max_new_tokens=4) for test in made.evaluation.tests)
    study = Study(
        baselines={"retrain": "retrain-rlvr", "BTX": "btx_first-route", "dense": "dense_merge"},
        ablations={"frozen": "flex_tool_use-sft"},
        upgrades=(Upgrade(name="code", before="before_code-route", after="final", changed=("code",)),),
        sweeps=(
            Sweep(
                name="active experts",
                x="active",
                points={"1": "final@1", "2": "final@2", "2 by layer": "few", "5": "final"},
            ),
            Sweep(
                name="small experts",
                x="rank",
                points={"2": "rank2", "all": "final"},
                skills=("math", "code"),
            ),
        ),
        claims=(
            Claim(text="the same as itself", before="final", after="final", expect="same"),
            Claim(text="better than itself", before="final", after="final", expect="higher"),
            Claim(text="beyond a toy", untestable="no toy"),
            Claim(
                text="near its expert",
                before=ends["math"],
                after="final",
                skills=("math",),
                expect="same",
                margin=1.0,
                source="this test",
            ),
        ),
        retrained="retrain-rlvr",
        lens={"math": 2},
    )
    return replace(
        made,
        world=WORLD,
        pretrain=small(made.pretrain),
        posttrain=small(made.posttrain),
        experts=tuple(map(cut, made.experts)),
        route=small(made.route),
        more=(*(cut(part) for part in made.more if part.name in KEPT), dense, rank2, few),
        evaluation=replace(
            made.evaluation, tests=tests, only={ends["math"]: ("math", "code"), "rank2": ("math", "code")}
        ),
        study=study,
    )
