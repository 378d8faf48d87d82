"""The published run says the published numbers, and what a user can get wrong about a recipe is told in one
line."""

import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from scripts import ROOT, run_here

from megatron_bar.config import diff, from_json, override, to_json
from megatron_bar.errors import BarError
from megatron_bar.evaluation import generative
from megatron_bar.planner.dry_run import describe
from megatron_bar.planner.usage import Machine, PlannedStage, usage
from megatron_bar.recipes import load_recipe, smollm2_study
from megatron_bar.recipes.recipe import Evaluation, Recipe, Training
from megatron_bar.recipes.study import Study
from megatron_bar.run.pipeline import Pipeline
from megatron_bar.training.freeze import table
from megatron_bar.weights.groups import POLICIES, ParamGroup
from megatron_bar.weights.hf_config import ModelConfig, num_parameters, tensor_shapes

HIDDEN, LAYERS, FFN, VOCABULARY = 4096, 32, 11_008, 100_278
EXPERT, ROUTER_ROW, EMBEDDING = LAYERS * 3 * HIDDEN * FFN, LAYERS * HIDDEN, VOCABULARY * HIDDEN
SHARED = LAYERS * (4 * HIDDEN**2 + 2 * HIDDEN)
"""Attention with its two norms."""
TRAINS = {
    # What the article's table says moves, in parameters of {anchor, expert}; the anchor's router row is
    # masked, not removed.
    "midtrain": EXPERT + 2 * ROUTER_ROW,
    "sft": EXPERT + 2 * ROUTER_ROW + 2 * EMBEDDING + HIDDEN,
    "rlvr": EXPERT + 2 * ROUTER_ROW + 2 * EMBEDDING + HIDDEN + SHARED + LAYERS * 2 * HIDDEN,
}
PUBLISHED = {
    # Of every stage: its amount, tokens in a step, tokens in a row, and the second line of the dry run.
    "midtrain": (
        "47,684 steps",
        1_048_576,
        8192,
        "lr 0.0009 cosine to 10%, warmup 2000 steps",
        "router 0.001 head 1e-05",
    ),
    "sft": ("2 epochs", 1_048_576, 4096, "lr 0.0001 linear to 0%, warmup 3%", "router 0.001 head 0"),
    "rlvr": (
        "rounds of 64 prompts x 8, 4 mini-batches",
        None,
        2048 + 4096,
        "lr 6e-07 constant",
        "router 0.001 head 0",
    ),
    "route": ("2 epochs", 1_310_720, 2048, "lr 0.0001 linear to 0%, warmup 3%", "router 0.001 head 0"),
}


@pytest.fixture(scope="module")
def dry_run() -> list[str]:
    recipe = load_recipe("olmo2_7b")
    return list(describe(recipe, Pipeline(recipe, Path()).shape))


SHIPPED = (
    "tiny",
    "tiny_study",
    "untagged",
    "sparse",
    "smoke",
    "smollm2",
    "smollm2_study",
    "olmo2_1b",
    "olmo2_7b",
    "olmo2_13b",
    "olmo2_32b",
    "qwen3_8b",
    "llama31_8b",
)


OF_STUDY = [f"{smollm2_study.__name__}:{piece}" for piece in smollm2_study.PIECES]


@pytest.mark.parametrize("name", [*SHIPPED, *OF_STUDY])
def test_every_shipped_recipe_is_shown(name):
    recipe = load_recipe(name)
    lines = list(describe(recipe, Pipeline(recipe, Path()).shape))
    assert lines[0].startswith(f"recipe {recipe.name}: ")
    for part in recipe.more:
        assert any(line.startswith(part.name) for line in lines)


def test_the_pieces_are_the_study():
    whole = load_recipe("smollm2_study")
    pieces = [load_recipe(name) for name in OF_STUDY]
    assert whole.more == sum((piece.more for piece in pieces), ())
    assert whole.study.claims == sum((piece.study.claims for piece in pieces), ())
    places = [
        Pipeline(recipe, Path()).select()[-1].name for recipe in (load_recipe("smollm2"), whole, *pieces)
    ]
    _, _, told = (ROOT / "Makefile").read_text().partition("PIECES := $(addprefix")
    assert told.splitlines()[0].partition(":,")[2] == " ".join(smollm2_study.PIECES) + ")"
    assert len(set(places)) == len(places) and {Path(place).name for place in places} == {"report.md"}


def section(lines: list[str], name: str) -> list[str]:
    """The lines of one step of the dry run."""
    start = next(n for n, line in enumerate(lines) if line.startswith(f"{name}: "))
    end = next((n for n in range(start + 1, len(lines)) if not lines[n].startswith(" ")), len(lines))
    return lines[start:end]


def test_the_models_have_the_published_sizes(dry_run):
    assert dry_run[0] == "recipe olmo2_7b: dense 7,298,011,136 parameters, 4 experts"
    assert section(dry_run, "branched") == [
        "branched: {anchor, domain}, router normal: 11,626,795,008 parameters"
    ]
    assert section(dry_run, "merged") == [
        "merged: anchor, math, code, safety, tool_use; shared mean: 24,612,753,408 parameters"
    ]
    assert "    trains 655,360 of 24,612,753,408 parameters" in section(dry_run, "final")


TOTALS = {
    # Of the folders on the Hugging Face hub; 7B with the vocabulary of BAR-7B.
    "olmo2_1b": 1_484_916_736,
    "olmo2_7b": 7_298_617_344 - 2 * (100_352 - VOCABULARY) * HIDDEN,
    "olmo2_13b": 13_716_198_400,
    "olmo2_32b": 32_234_279_936,
    "qwen3_8b": 8_190_735_360,
    "llama31_8b": 8_030_261_248,
}


@pytest.mark.parametrize("name", TOTALS)
def test_the_sizes_are_those_of_the_published_folders_and_of_transformers(name):
    recipe = load_recipe(name)
    assert num_parameters(recipe.shape) == TOTALS[name]
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(**recipe.shape.to_hf())
        theirs = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    assert tensor_shapes(recipe.shape) == {name: tuple(tensor.shape) for name, tensor in theirs.items()}


@pytest.mark.parametrize("name", TOTALS)
def test_they_differ_in_shape_folders_and_layouts_alone(name):
    """And in how chats are laid out, where the tokenizer is another."""
    for change in diff(load_recipe("olmo2_7b"), load_recipe(name)):
        named = change.startswith(("name:", "base:", "anchor:", "shape."))
        named = named or (change.startswith("chat_template:") and not name.startswith("olmo2"))
        assert named or ".stage.parallel." in change or ".rl.slots:" in change, change


@pytest.mark.parametrize("name, nodes", [(name, 1 + (name == "olmo2_32b")) for name in TOTALS])
def test_every_stage_fits_into_80_gb(name, nodes, tmp_path):
    """By arithmetic and by the planner, who agree on what stays; beside both 4 GB are free."""
    pipeline = Pipeline(load_recipe(name), tmp_path)
    pipeline.check(pipeline.select(), 8 * nodes)
    for step in (step for step in pipeline.steps.values() if step.run is not None):
        shape = pipeline.shape.with_experts(step.experts)
        states, passing = rank_bytes(step.run, shape, 8 * nodes)
        planned = usage(
            PlannedStage(name=step.name, run=step.run, shape=shape),
            step.run.stage,
            Machine(gpus=8 * nodes, memory=80 * 10**9),
        )
        stays = planned.weights + planned.gradients + planned.optimizer + planned.start
        assert states == pytest.approx(stays, rel=0.01), step.name
        assert max(states + passing, planned.total) < 76e9, step.name


def rank_bytes(run: Training, shape: ModelConfig, world_size: int) -> tuple[float, float]:
    """Bytes of a rank that stay: 2 a parameter, 4 a gradient, in RLVR 2 for the start, all on every rank that
    holds them, and 12 of the optimizer on one. And bytes that pass: without recomputation, per layer and
    token the inputs, queries, keys, values and outputs of attention, both halves of every expert's first
    product, and gathered over the experts' ranks its input and their outputs; logits in bf16 and their
    gradient. Or, where that is more, keys and values of the answers in flight."""
    stage = run.stage
    layout = stage.parallel
    tensor = layout.tensor
    cut = layout.expert if layout.expert > 1 else tensor
    counts = table(shape, POLICIES[stage.policy])
    experts = (ParamGroup.ANCHOR_EXPERT, ParamGroup.DOMAIN_EXPERT)
    rank = [(count / (cut if group in experts else tensor), on) for group, count, on in counts]
    all_of_it = sum(held for held, _ in rank) / layout.pipeline
    trains = sum(held for held, on in rank if on) / layout.pipeline
    optimizer = 12 * sum(count for _, count, on in counts if on) / world_size
    states = 2 * all_of_it + (6 if run.rl else 4) * trains + optimizer
    assert not stage.recompute
    h = shape.hidden_size
    keys = 2 * shape.num_kv_heads * shape.head_dim
    layer = 8 * h + keys + shape.num_experts * 2 * shape.intermediate_size + (shape.num_experts + 1) * h * cut
    tokens = stage.sequence * stage.micro_batch / tensor
    # The first pipeline rank keeps as many micro-batches as there are ranks, of its share of the layers.
    passing = 2 * tokens * (shape.num_layers * layer + 2 * shape.vocab_size)
    slots = run.rl.slots if run.rl else 0
    cache = 2 * slots * stage.sequence * keys * shape.num_layers / (tensor * layout.pipeline)
    return states, max(passing, cache)


STEPS = [
    *(f"{expert}-{stage}" for expert in ("math", "code") for stage in ("midtrain", "sft", "rlvr")),
    *("safety-sft", "tool_use-sft"),
]


@pytest.mark.parametrize("name", STEPS)
def test_the_experts_have_the_published_hyperparameters(dry_run, name):
    lines, stage = section(dry_run, name), name.partition("-")[2]
    check_published(lines, stage)
    assert (
        f"    trains {TRAINS[stage]:,} of 11,626,795,008 parameters, the anchor's router row masked" in lines
    )
    assert any(re.fullmatch(r" +frozen +anchor_expert +4,328,521,728", line) for line in lines)


def check_published(lines: list[str], stage: str) -> None:
    amount, tokens, row, rate, z_losses = PUBLISHED[stage]
    assert amount in lines[0] and f"policy {stage}," in lines[0] and lines[0].endswith(f"in rows of {row}")
    assert tokens is None or f" {tokens:,} tokens a step" in lines[0]
    assert lines[1].startswith(f"    {rate}")
    assert lines[1].endswith(f"AdamW (0.9, 0.95), weight decay 0, clip 1, z-loss {z_losses}")


def test_the_router_has_the_published_hyperparameters(dry_run):
    check_published(section(dry_run, "final"), "route")
    (data,) = (line for line in section(dry_run, "final") if line.startswith("    data "))
    assert data.count("(5%)") == data.count(".jsonl") == 7 + 1 + 3


def test_the_steps_are_the_published_ones_in_order(dry_run):
    names = [line.partition(":")[0] for line in dry_run if not line.startswith((" ", "recipe"))]
    assert names == ["branched", *STEPS, "merged", "final"]


def test_grpo_has_the_published_numbers():
    found = {expert.name: expert.runs[-1].rl for expert in load_recipe("olmo2_7b").experts}
    assert found["safety"] is None and found["tool_use"] is None
    assert (found["math"].rounds, found["code"].rounds) == (300, 150)
    rl = found["math"]
    assert (rl.prompts, rl.group, rl.mini_batches, rl.max_new_tokens) == (64, 8, 4, 4096)
    assert (rl.temperature, rl.clip_low, rl.clip_high, rl.reward, rl.solved) == (1.0, 0.2, 0.272, 10.0, 0.875)


def test_the_entry_point_prints_the_dry_run_and_does_nothing(dry_run, monkeypatch, capsys, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    script, out = ROOT / "examples" / "pretrain_bar.py", tmp_path / "out"
    status, stdout, _ = run_here(
        monkeypatch, capsys.readouterr, script, "olmo2_7b", "--dry-run", "--out", out
    )
    assert (status, stdout.splitlines()) == (0, dry_run)
    changes = ("--set", "experts.math.sft.policy=sft_shared_frozen", "base=nowhere")
    status, stdout, _ = run_here(
        monkeypatch, capsys.readouterr, script, "olmo2_7b", "--dry-run", "--out", out, *changes
    )
    lines = section(stdout.splitlines(), "math-sft")
    assert "policy sft_shared_frozen" in lines[0] and f"trains {TRAINS['midtrain']:,}" in lines[4]
    assert not out.exists()
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("name", ["tiny", "smoke", "olmo2_7b", "olmo2_32b", "llama31_8b"])
def test_a_recipe_survives_json(name):
    recipe = load_recipe(name)
    assert from_json(Recipe, to_json(recipe)) == recipe


FILE = """
from dataclasses import replace
from megatron_bar.recipes import tiny

NUMBER = 3

def mine():
    return replace(tiny.recipe(), name="mine", seed=7)

def nothing():
    return None
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "my_recipes.py"
    path.write_text(FILE)
    return path


def test_a_recipe_is_found_by_name_module_or_file(file):
    assert load_recipe("tiny") == load_recipe("megatron_bar.recipes.tiny:recipe")
    assert load_recipe(f"{file}:mine") == replace(load_recipe("tiny"), name="mine", seed=7)
    assert load_recipe(str(ROOT / "examples/add_expert.py:recipe")).experts[-1].name == "caution"


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "huge",
            "recipe huge: not found; expected one of llama31_8b, olmo2_13b, olmo2_1b, olmo2_32b, olmo2_7b, "
            "qwen3_8b, smoke, smollm2, smollm2_study, sparse, tiny",
        ),
        ("no.such.module:recipe", "recipe no.such.module:recipe: not found; expected one of"),
        ("tiny:recipes", "recipe tiny:recipes: not found"),  # with a function, the module is named in full
        ("megatron_bar.recipes.tiny:recipes", "has no function recipes"),
        ("FILE:yours", "has no function yours"),
        ("FILE:NUMBER", "has no function NUMBER"),
        ("FILE", "has no function recipe"),
        ("FILE:nothing", "expected a Recipe, got NoneType"),
        ("nowhere.py:recipe", "recipe nowhere.py:recipe: nowhere.py not found"),
    ],
)
def test_a_recipe_that_is_none_is_told_in_one_line(file, name, message):
    with pytest.raises(BarError, match=re.escape(message)) as caught:
        load_recipe(name.replace("FILE", str(file)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ("route.optim.lrr=1e-4", r"route\.optim has no 'lrr'; did you mean lr\?"),
        ("route.optim.lr=fast", r"route\.optim\.lr must be a finite float, got 'fast'"),
        (
            "experts.math.sft.optim.lr=-1",
            r"experts\.math\.runs\.sft\.stage\.optim: optim\.lr must be positive, got -1",
        ),
        ("experts.9.name=math", r"experts has no '9'; valid: math, code, tool_use, safety or 0 to 3"),
        (
            "experts.math.midtrain.sequence=0",
            r"experts\.math\.runs\.midtrain\.stage: stage midtrain: sequence expected",
        ),
        ("route.policy=all", r"route\.stage: stage route: policy must be one of .*, got 'all'"),
        (
            "route.parallel.tensor=0",
            r"route\.stage\.parallel: parallel\.tensor must be a positive integer, got 0",
        ),
        (
            "experts.math.sft.data.general.share=2",
            r"math\.runs\.sft\.data\.sft_general: source .*: share must be",
        ),
        ("router_init=ones", r"router_init must be one of normal, zero, got 'ones'"),
        ("seed", r"override 'seed': expected PATH=VALUE"),
        (
            "pretrain=none",
            r"recipe tiny: base expected a folder, or pretrain and shape to make one, got neither",
        ),
        (
            "posttrain=none",
            r"recipe tiny: anchor expected a folder, or posttrain to make one from the base, got neither",
        ),
        (
            "experts.code.name=math",
            r"experts expected of different names, each with a run, got math, math, tool_use",
        ),
        ("experts.code.runs=", r"recipe tiny: experts expected of different names, each with a run"),
        ("experts=", r"recipe tiny: experts expected of different names, each with a run, got none"),
        (
            "experts.math.name=../../evil",
            r"experts\.0: expert name expected letters, .*, got '\.\./\.\./evil'",
        ),
        ("experts.math.name=anchor", r"expert anchor: expected another name than anchor"),
        ("experts.math.sft.name=midtrain", r"stages of different names: \['midtrain', 'midtrain', 'rlvr'\]"),
        ("route.name=a/b", r"stage name expected letters"),
        ("route.steps=-5", r"stage route: steps expected at least 1, got -5"),
        ("route.epochs=0", r"stage route: epochs must be positive, got 0"),
        ("route.save_every=-1", r"stage route: save_every expected at least 0, got -1"),
        ("route.optim.betas=2,3", r"optim\.betas must be within 0 and 1, got \(2\.0, 3\.0\)"),
        ("route.optim.clip=-1", r"optim\.clip must be positive, got -1"),
        (
            "experts.math.midtrain.optim.weight_decay=0.1",
            r"weight_decay must be 0 where the router's anchor row",
        ),
        ("experts.math.rlvr.rl.group=1", r"rl: group expected at least 2, got 1"),
        ("experts.math.rlvr.rl.mini_batches=0", r"rl: mini_batches expected at least 1, got 0"),
        ("experts.math.rlvr.rl.temperature=-1", r"rl: temperature must be positive, got -1"),
        ("route.data=", r"stage route: data expected at least one source, got none"),
        (
            "route.data.general.kind=task",
            r"stage route: sft_general\.jsonl: expected rows of text or chat or tokens",
        ),
        ("shared.method=foo", r"shared.method must be one of mean, weighted, .*, got 'foo'"),
        ("embedding_std=-1", r"embedding_std must be positive"),
        ("evaluation.slots=0", r"evaluation: slots expected at least 1, got 0"),
        (
            "evaluation.tests.knowledge.max_new_tokens=0",
            r"test set knowledge: max_new_tokens expected at least 1",
        ),
    ],
)
def test_a_wrong_change_names_the_field(change, message):
    with pytest.raises(BarError, match=message):
        override(load_recipe("tiny"), [change])


@pytest.mark.parametrize(
    "recipe, named, indexed",
    [
        ("tiny", "experts.safety.sft.parallel.tensor=2", ["experts.3.runs.0.stage.parallel.tensor=2"]),
        ("tiny", "experts.math.rlvr.rl.slots=16", ["experts.0.runs.2.rl.slots=16"]),
        ("tiny", "route.data.general.share=1", ["route.data.0.share=1"]),
        ("tiny", "experts.*.rlvr.optim.lr=1", [f"experts.{n}.runs.2.stage.optim.lr=1" for n in (0, 1)]),
        ("olmo2_7b", "route.data.oasst1.share=1", ["route.data.4.share=1"]),
        (
            "olmo2_7b",
            "experts.code.midtrain.data.swallow_code.share=.5",
            ["experts.1.runs.0.data.1.share=.5"],
        ),
        ("tiny_study", "more.router_0.01.route.batch=8", ["more.30.runs.0.stage.batch=8"]),
        ("tiny_study", "more.untrained_hidden.texts.math.share=1", ["more.44.texts.1.share=1"]),
        (
            "smoke",
            "experts.*.*.parallel.tensor=2",
            [
                f"experts.{n}.stage.parallel.tensor=2"
                for n in ("0.runs.0", "0.runs.1", "0.runs.2", "1.runs.0")
            ],
        ),
    ],
)
def test_a_change_names_what_it_changes(recipe, named, indexed):
    made = load_recipe(recipe)
    assert override(made, [named]) == override(made, indexed) != made


def test_a_domain_of_several_sources_is_not_guessed():
    with pytest.raises(
        BarError, match=r"route\.data\.general is the name of several, expected one of 0 \(wildchat\)"
    ):
        override(load_recipe("olmo2_7b"), ["route.data.general.share=1"])


def test_two_changes_that_are_valid_together_are_made_in_either_order():
    lag, cap = "experts.math.rlvr.rl.lag=1", "experts.math.rlvr.rl.importance_cap=2"
    assert override(load_recipe("tiny"), [lag, cap]) == override(load_recipe("tiny"), [cap, lag])


@pytest.mark.parametrize(
    "change, message",
    [
        (
            "route.batch=3",
            r"stage route: batch of 3 rows is not divisible by micro-batch 2 x 1 data-parallel",
        ),
        ("route.parallel.pipeline=3", r"stage route: 4 layers cannot be divided over 3 ranks"),
        (
            "experts.code.midtrain.parallel.expert=7",
            r"midtrain: 384 FFN columns cannot be divided over 7 ranks",
        ),
        (
            "route.policy=dense_all",
            r"stage route: policy dense_all trains ffn, which the model does not have",
        ),
        (
            "pretrain.parallel.expert=2",
            r"stage pretrain: expert parallelism 2 needs experts, and the model is dense",
        ),
    ],
)
def test_what_no_step_could_do_is_told_before_the_first(tmp_path, change, message):
    pipeline = Pipeline(override(load_recipe("tiny"), [change]), tmp_path)
    with pytest.raises(BarError, match=message):
        pipeline.check(pipeline.select())


def test_the_shipped_recipes_can_be_run_on_what_they_are_meant_for(tmp_path):
    for name, processes in (
        ("tiny", 1),
        ("tiny", 2),
        ("smoke", 16),
        *((name, 64) for name in TOTALS),
    ):
        pipeline = Pipeline(load_recipe(name), tmp_path)
        pipeline.check(pipeline.select(), processes)
    pipeline = Pipeline(load_recipe("olmo2_7b"), tmp_path)
    pipeline.check(pipeline.select(stage="route"), 40)  # as published: on five nodes


def test_steps_are_selected_by_expert_and_stage(tmp_path):
    pipeline = Pipeline(load_recipe("tiny"), tmp_path)
    named = lambda **which: [step.name for step in pipeline.select(**which)]  # noqa: E731
    assert named() == list(pipeline.steps)
    assert named(expert="math") == ["math-midtrain", "math-sft", "math-rlvr"]
    assert named(stage="rlvr") == ["math-rlvr", "code-rlvr"]
    assert named(expert="safety", stage="sft") == ["safety-sft"]
    assert named(stage="merge") == ["merged"] and named(stage="report") == ["report.md"]
    for which, message in (
        ({"expert": "cooking"}, r"--expert cooking: expected one of code, math, safety, tool_use"),
        ({"stage": "dpo"}, r"--stage dpo: expected one of .*merge.*rlvr.*sft"),
        ({"expert": "safety", "stage": "rlvr"}, r"expert safety has no stage rlvr"),
    ):
        with pytest.raises(BarError, match=message):
            pipeline.select(**which)


def test_given_folders_replace_what_would_make_them(tmp_path):
    tiny = load_recipe("tiny")
    assert list(Pipeline(tiny, tmp_path).steps)[:5] == ["world", "init", "base", "anchor", "branched"]
    given = Pipeline(replace(tiny, base=Path("b"), anchor=Path("a")), tmp_path)
    assert list(given.steps)[:2] == ["world", "branched"]
    assert tuple(map(given.folder.path, ("base", "anchor", "merged"))) == (
        Path("b"),
        Path("a"),
        tmp_path / "merged",
    )
    assert given.steps["merged"].needs == ("branched", "math-rlvr", "code-rlvr", "tool_use-sft", "safety-sft")
    own_data = Pipeline(replace(tiny, data=Path("d"), evaluation=None), tmp_path)
    assert (
        "world" not in own_data.steps
        and list(own_data.steps)[-1] == "final"
        and own_data.folder.data == Path("d")
    )
    tests = (generative.TestSet(name="chat", path=Path("t.jsonl"), max_new_tokens=4),)
    evaluated = Pipeline(replace(tiny, evaluation=Evaluation(tests=tests), study=Study()), tmp_path)
    assert evaluated.steps["report.md"].needs[0] == "evaluation/anchor.json"
    assert evaluated.steps["report.md"].needs[-1] == "evaluation/final.json"
