import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.config import config_hash, diff, from_json, override, to_json
from megatron_bar.errors import BarError
from megatron_bar.weights.groups import SFT, FreezePolicy
from megatron_bar.weights.hf_config import ModelConfig


class Norm(StrEnum):
    PRE = "pre"
    POST = "post"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0


@dataclass(frozen=True, kw_only=True)
class Range:
    low: int = 0
    high: int = 1

    def __post_init__(self):
        if self.low >= self.high:
            raise BarError(f"low must be below high, got {self.low} and {self.high}")


@dataclass(frozen=True, kw_only=True)
class Sft:
    epochs: int = 2


@dataclass(frozen=True, kw_only=True)
class Grpo:
    group: int = 8


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str = "run"
    out: Path = Path("runs")
    steps: int = 10
    packed: bool = True
    note: str | None = None
    seed_or_name: int | str = 0
    norm: Norm = Norm.POST
    level: Level = Level.LOW
    shared: Literal["mean", "first", 3] = "mean"
    sizes: tuple[int, ...] = ()
    kinds: frozenset[Norm] = frozenset()
    optim: Optim = Optim()
    maybe: Optim | None = None
    bounds: Range = Range()
    objective: Sft | Grpo = Sft()
    experts: dict[str, Optim] = dataclasses.field(default_factory=dict)
    stages: tuple[Sft | Grpo, ...] = ()


finite = st.floats(allow_nan=False, allow_infinity=False)
optims = st.builds(Optim, lr=finite, betas=st.tuples(finite, finite), clip=st.none() | finite)
objectives = st.builds(Sft, epochs=st.integers()) | st.builds(Grpo, group=st.integers())
runs = st.builds(
    Run,
    name=st.text(),
    out=st.text(st.characters(categories=["L", "N"]), min_size=1).map(Path),
    steps=st.integers(),
    packed=st.booleans(),
    note=st.none() | st.text(),
    seed_or_name=st.integers() | st.text(),
    norm=st.sampled_from(Norm),
    level=st.sampled_from(Level),
    shared=st.sampled_from(["mean", "first", 3]),
    sizes=st.lists(st.integers()).map(tuple),
    kinds=st.frozensets(st.sampled_from(Norm)),
    optim=optims,
    maybe=st.none() | optims,
    bounds=st.integers().map(lambda low: Range(low=low, high=low + 1)),
    objective=objectives,
    experts=st.dictionaries(st.sampled_from(["math", "code", "tool"]), optims),
    stages=st.lists(objectives, max_size=3).map(tuple),
)


@given(runs)
def test_json_round_trip(run):
    assert from_json(Run, json.loads(json.dumps(to_json(run), allow_nan=False))) == run


@given(runs, runs)
def test_hash_and_diff_see_every_field(a, b):
    assert (config_hash(a) == config_hash(b)) == (a == b) == (diff(a, b) == [])


@given(runs, runs)
def test_overriding_every_field_with_its_json_text_gives_the_other_config(a, b):
    """Compound fields and texts that JSON quotes are given as the command line would: raw text for text, JSON
    for the rest."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in to_json(b).items()
    }
    if texts["note"].lower() in ("none", "null"):
        texts["note"] = "null"
        b = dataclasses.replace(b, note=None)
    if isinstance(b.seed_or_name, str):  # "12" means the number, by the order of the union
        texts["seed_or_name"], b = "text", dataclasses.replace(b, seed_or_name="text")
    assert override(a, [f"{name}={text}" for name, text in texts.items()]) == b


@pytest.mark.parametrize(
    "assignment, path, value",
    [
        ("name=a=b", "name", "a=b"),
        ("out=/tmp/x y", "out", Path("/tmp/x y")),
        ("steps=1_000", "steps", 1000),
        ("packed=False", "packed", False),
        ("note=None", "note", None),
        ("note=hello", "note", "hello"),
        ("seed_or_name=7", "seed_or_name", 7),
        ("seed_or_name=seven", "seed_or_name", "seven"),
        ("norm=pre", "norm", Norm.PRE),
        ("level=2", "level", Level.HIGH),
        ("shared=3", "shared", 3),
        ("sizes=1, 2,3", "sizes", (1, 2, 3)),
        ("sizes=", "sizes", ()),
        ("kinds=pre,post", "kinds", frozenset(Norm)),
        ("optim.lr=1", "optim.lr", 1.0),
        ("optim.betas=[0.5, 0.6]", "optim.betas", (0.5, 0.6)),
        ("optim.betas.1=0.99", "optim.betas", (0.9, 0.99)),
        ("optim.clip=null", "optim.clip", None),
        ("objective.epochs=5", "objective.epochs", 5),
        ('objective={"group": 4}', "objective", Grpo(group=4)),
        ("experts.math.lr=0.5", "experts", {"math": Optim(lr=0.5), "code": Optim()}),
        ("stages.1.group=16", "stages", (Sft(), Grpo(group=16))),
    ],
)
def test_override(assignment, path, value):
    run = Run(experts={"math": Optim(), "code": Optim()}, stages=(Sft(), Grpo()))
    changed = override(run, [assignment])
    got = changed
    for key in path.split("."):
        got = getattr(got, key)
    assert got == value and type(got) is type(value)
    head = path.split(".")[0]
    assert {line.split(".")[0].split(":")[0] for line in diff(run, changed)} <= {head}, (
        "something else moved too"
    )


def test_fields_valid_only_together_change_together():
    assert override(Run(), ["bounds.low=5", "bounds.high=9"]).bounds == Range(low=5, high=9)


def test_later_assignments_win():
    assert override(
        Run(), ["steps=1", 'optim={"lr": 2, "betas": [0, 0], "clip": 1}', "steps=3", "optim.lr=4"]
    ) == Run(steps=3, optim=Optim(lr=4.0, betas=(0.0, 0.0)))


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("steps", "override 'steps': expected PATH=VALUE"),
        ("optim.lrr=1", "optim has no 'lrr'; did you mean lr? valid: lr, betas, clip"),
        ("stebs=1", "Run has no 'stebs'; did you mean steps or stages or sizes? valid: name, out, steps"),
        ("steps=1e3", "steps must be int, got '1e3'"),
        ("steps=true", "steps must be int, got 'true'"),
        ("steps=", "steps must be int, got ''"),
        ("steps.x=1", "steps is 10 and has no field 'x'"),
        ("packed=1", "packed must be bool, got '1'"),
        ("optim.lr=fast", "optim.lr must be a finite float, got 'fast'"),
        ("optim.lr=nan", "optim.lr must be a finite float, got nan"),
        ("optim.lr=inf", "optim.lr must be a finite float, got inf"),
        ("optim.clip=x", "optim.clip must be a finite float, got 'x'"),
        ("optim.betas=1", "optim.betas must have 2 items, got 1"),
        ("optim.betas.2=1", "optim.betas has no '2'; valid: 0 to 1"),
        (
            "optim=fast",
            "optim: expected the path of one of its parts (lr, betas, clip), or JSON for the whole, got "
            "'fast'",
        ),
        ('optim={"lr"', "optim must be JSON, got '{\"lr\"': "),
        ('optim={"lr": 1}', "optim.betas is missing, expected tuple[float, float]"),
        ("norm=none", "norm must be one of pre, post, got 'none'"),
        ("shared=median", "shared must be one of mean, first, 3, got 'median'"),
        ("sizes=1,x", "sizes.1 must be int, got 'x'"),
        ("maybe.lr=1", "maybe is null and has no field 'lr'"),
        ("objective.group=1", "objective has no 'group'; valid: epochs"),
        ("objective={}", "objective must be Sft or Grpo, got '{}'"),
        ("experts.maths.lr=1", "experts has no 'maths'; did you mean math? valid: math"),
        ("stages.0.epochs=1", "stages has no '0'; valid: "),
        ("bounds.low=1", "bounds: low must be below high, got 1 and 1"),
    ],
)
def test_bad_override_is_one_line_naming_field_expected_and_got(assignment, message):
    with pytest.raises(BarError) as caught:
        override(Run(experts={"math": Optim()}), [assignment])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.pop("steps"), "steps is missing, expected int"),
        (lambda d: d["optim"].pop("lr"), "optim.lr is missing, expected a finite float"),
        (lambda d: d.update(step=1), "Run has no 'step'; did you mean steps or stages?"),
        (lambda d: d.update(steps=1.0), "steps must be int, got 1.0"),
        (lambda d: d.update(steps=True), "steps must be int, got True"),
        (lambda d: d.update(level=True), "level must be one of 1, 2, got True"),
        (lambda d: d.update(packed=0), "packed must be bool, got 0"),
        (lambda d: d.update(name=None), "name must be str, got None"),
        (lambda d: d["optim"].update(lr=10**400), "optim.lr must be a finite float, got 1000"),
        (lambda d: d.update(sizes="12"), "sizes must be tuple[int, ...], got '12'"),
        (lambda d: d.update(optim=[]), "optim must be Optim, got []"),
        (lambda d: d.update(objective={}), "objective must be Sft or Grpo, got {}"),
    ],
)
def test_from_json_is_strict(change, message):
    data = to_json(Run())
    change(data)
    with pytest.raises(BarError, match="config: ") as caught:
        from_json(Run, data)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "run, message",
    [
        (Run(steps="10"), "steps must be int, got '10'"),
        (Run(sizes=[1]), "sizes must not be of type list, got [1]"),
        (Run(optim=Optim(lr=float("nan"))), "optim.lr must be a finite float, got nan"),
        (Run(name=print), "name must not be of type builtin_function_or_method"),
    ],
)
def test_a_value_that_contradicts_its_annotation_is_not_written(run, message):
    with pytest.raises(BarError) as caught:
        to_json(run)
    assert message in str(caught.value)


def test_a_union_that_json_cannot_tell_apart_is_refused():
    @dataclass(frozen=True)
    class Twin:
        epochs: int = 2

    run = dataclasses.make_dataclass("Twins", [("objective", Sft | Twin)], frozen=True)(Twin())
    with pytest.raises(BarError, match="members of a union need different fields"):
        to_json(run)


def test_diff_reads_as_lines():
    old = Run(experts={"math": Optim()}, sizes=(1, 2))
    new = override(Run(experts={"code": Optim()}, sizes=(1, 3, 4)), ["optim.lr=1e-4", "norm=pre"])
    lines = diff(old, new)
    assert lines[:3] == ['norm: "post" -> "pre"', "sizes.1: 2 -> 3", "optim.lr: 0.001 -> 0.0001"]
    assert {
        "experts.math.lr: 0.001 -> absent",
        "experts.code.lr: absent -> 0.001",
        "sizes.2: absent -> 4",
    } <= set(lines)
    assert diff(Run(), Run(sizes=(1,))) == ["sizes: [] -> absent", "sizes.0: absent -> 1"]


def test_hash_is_the_same_in_another_process_and_for_equal_numbers():
    assert config_hash(Run(optim=Optim(lr=1))) == config_hash(Run(optim=Optim(lr=1.0)))
    script = (
        "from test_config import *; print(config_hash(Run(kinds=frozenset(Norm), experts={'b': "
        "Optim(), 'a': Optim()})))"
    )
    path = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {script}"]
    other = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    ).stdout.strip()
    assert config_hash(Run(kinds=frozenset(Norm), experts={"a": Optim(), "b": Optim()})) == other


def test_the_project_s_own_dataclasses_round_trip():
    model = ModelConfig(
        vocab_size=1003, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=2, max_positions=128,
        rope_theta=5e5, rms_norm_eps=1e-6, eos_token_id=(3, 4),
    )  # fmt: skip
    assert from_json(ModelConfig, to_json(model)) == model
    assert override(model, ["num_experts=5", "experts_per_token=2", "eos_token_id=7"]).num_experts == 5
    assert from_json(FreezePolicy, to_json(SFT)) == SFT
