"""Names lead where indices lead; what leads nowhere is refused in one line that lists what there is."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.config import diff, from_json, override, to_json
from megatron_bar.config.names import IS_NAME, STANDS_FOR_IT
from megatron_bar.errors import BarError


@dataclass(frozen=True, kw_only=True)
class Rate:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    optim: Rate = Rate()
    steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rows:
    path: Path = field(metadata=IS_NAME)
    domain: str = field(default="", metadata=IS_NAME)
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Lesson:
    stage: Stage = field(metadata=STANDS_FOR_IT)
    data: tuple[Rows, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    extra: Rate | None = None


@dataclass(frozen=True, kw_only=True)
class Pupil:
    name: str
    lessons: tuple[Lesson, ...] = field(metadata=STANDS_FOR_IT)
    start: str = "base"


@dataclass(frozen=True, kw_only=True)
class Merged:
    name: str
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class School:
    pupils: tuple[Pupil, ...]
    more: tuple[Pupil | Merged, ...] = ()
    before: Lesson | None = None
    after: Lesson | None = None
    seed: int = 0


def rows(path: str, domain: str = "") -> Rows:
    return Rows(path=Path(path), domain=domain)


def lesson(name: str, *data: Rows, **more) -> Lesson:
    return Lesson(stage=Stage(name=name), data=data, **more)


GENERAL = (rows("sft/wildchat.jsonl#500", "general"), rows("sft/flan_v2.json.gz", "general"))
SCHOOL = School(
    pupils=(
        Pupil(
            name="math", lessons=(lesson("mid"), lesson("sft", *GENERAL, rows("math.jsonl"), extra=Rate()))
        ),
        Pupil(name="code", lessons=(lesson("sft", *GENERAL, rows("a/code.jsonl", "code")),)),
    ),
    more=(
        Merged(name="both-merged", inputs=("math", "code")),
        Pupil(name="router_0.1", start="both-merged", lessons=(lesson("route", weights={"general": 0.5}),)),
    ),
    before=lesson("pretrain", rows("text.jsonl")),
)


@pytest.mark.parametrize(
    "named, indexed",
    [
        ("pupils.math.sft.optim.lr=2", ["pupils.0.lessons.1.stage.optim.lr=2"]),
        ("pupils.math.lessons.sft.stage.optim.lr=2", ["pupils.0.lessons.1.stage.optim.lr=2"]),
        ("pupils.0.sft.optim.betas.1=2", ["pupils.0.lessons.1.stage.optim.betas.1=2"]),
        ("pupils.code.sft.data.code.share=.5", ["pupils.1.lessons.0.data.2.share=.5"]),
        ("pupils.math.sft.data.math.share=.5", ["pupils.0.lessons.1.data.2.share=.5"]),
        ("pupils.math.sft.data.flan_v2.share=.5", ["pupils.0.lessons.1.data.1.share=.5"]),
        ("pupils.math.sft.data.wildchat.share=.5", ["pupils.0.lessons.1.data.0.share=.5"]),
        ("pupils.math.sft.extra.lr=2", ["pupils.0.lessons.1.extra.lr=2"]),
        ("pupils.code.start=math", ["pupils.1.start=math"]),
        ("pupils.math.sft.name=dpo", ["pupils.0.lessons.1.stage.name=dpo"]),
        ("before.steps=7", ["before.stage.steps=7"]),
        ("before.steps=none", ["before.stage.steps=none"]),
        ("before.data.text.share=.5", ["before.data.0.share=.5"]),
        ("more.router_0.1.route.steps=3", ["more.1.lessons.0.stage.steps=3"]),
        ("more.router_0.1.route.weights.general=1", ["more.1.lessons.0.weights.general=1"]),
        ("more.both-merged.inputs=code", ["more.0.inputs=code"]),
        ("pupils.*.sft.steps=3", ["pupils.0.lessons.1.stage.steps=3", "pupils.1.lessons.0.stage.steps=3"]),
        ("pupils.*.mid.steps=3", ["pupils.0.lessons.0.stage.steps=3"]),
        ("pupils.*.*.extra.lr=3", ["pupils.0.lessons.1.extra.lr=3"]),
        ("pupils.math.*.steps=3", ["pupils.0.lessons.0.stage.steps=3", "pupils.0.lessons.1.stage.steps=3"]),
        (
            "pupils.*.*.data.*.share=.5",
            [f"pupils.{p}.data.{n}.share=.5" for p in ("0.lessons.1", "1.sft") for n in range(3)],
        ),
        ("more.*.route.weights.*=2", ["more.1.lessons.0.weights.general=2"]),
        ("pupils.*.sft.data=", ["pupils.0.lessons.1.data=", "pupils.1.lessons.0.data="]),
    ],
)
def test_names_lead_where_indices_lead(named, indexed):
    changed = override(SCHOOL, [named])
    assert changed == override(SCHOOL, indexed)
    assert changed != SCHOOL or named == "before.steps=none"


def test_an_assignment_sees_what_earlier_ones_did():
    renaming = ["pupils.code.name=tool", "pupils.tool.sft.steps=3"]
    renamed = override(SCHOOL, [*renaming, "pupils.1.sft.name=dpo", "pupils.tool.dpo.steps=4"])
    assert renamed.pupils[1].lessons[0].stage == Stage(name="dpo", steps=4)
    stage = '{"name":"x","optim":{"lr":1,"betas":[0,0]},"steps":1}'
    whole = f'before={{"stage":{stage},"data":[],"weights":{{}},"extra":null}}'
    assert override(SCHOOL, ["before=null", whole, "before.steps=2"]).before.stage.steps == 2


LESSON = "stage, data, weights, extra; in stage name, optim, steps"
PUPIL = "name, lessons, start; in lessons mid, sft"
PARTS = "expected the path of one of its parts"


@pytest.mark.parametrize(
    "assignment, message",
    [
        # A name that is nobody's.
        ("pupils.maths.sft.steps=1", "pupils has no 'maths'; did you mean math? valid: math, code or 0 to 1"),
        ("pupils.math.stf.steps=1", f"pupils.math has no 'stf'; did you mean sft? valid: {PUPIL}"),
        ("pupils.math.sft.lr=1", f"pupils.math.sft has no 'lr'; valid: {LESSON}"),
        ("pupils.math.sft.stag.lr=1", f"pupils.math.sft has no 'stag'; did you mean stage? valid: {LESSON}"),
        (
            "pupils.math.sft.optim.lrr=1",
            "pupils.math.sft.optim has no 'lrr'; did you mean lr? valid: lr, betas",
        ),
        (
            "pupils.math.sft.data.chat.share=1",
            "has no 'chat'; did you mean wildchat? valid: wildchat, flan_v2, math or 0 to 2",
        ),
        ("pupils.math.mid.data.x.share=1", "pupils.math.mid.data has no 'x'; valid: none"),
        (
            "more.router.route.steps=1",
            "more has no 'router'; did you mean router_0.1? valid: both-merged, router_0.1 or 0 to 1",
        ),
        ("more.router_0.1.route.weights.x=1", "more.router_0.1.route.weights has no 'x'; valid: general"),
        ("math.sft.steps=1", "School has no 'math'; valid: pupils, more, before, after, seed"),
        ("pupils..steps=1", "pupils has no ''; valid: math, code or 0 to 1"),
        ("pupils.math.=1", f"pupils.math has no ''; valid: {PUPIL}"),
        ("=1", "School has no ''; valid: pupils"),
        # A name that several have.
        (
            "pupils.math.sft.data.general.share=1",
            "general is the name of several, expected one of 0 (wildchat), 1 (flan_v2)",
        ),
        (
            "pupils.*.sft.data.general.share=1",
            "pupils.math.sft.data.general is the name of several, expected one of 0",
        ),
        # An index where a name is meant, or out of range.
        ("pupils.math.1.steps=1", f"pupils.math has no '1'; valid: {PUPIL}"),
        ("pupils.2.sft.steps=1", "pupils has no '2'; valid: math, code or 0 to 1"),
        ("pupils.-1.sft.steps=1", "pupils has no '-1'; valid: math, code or 0 to 1"),
        ("pupils.code.lessons.1.stage.steps=1", "pupils.code.lessons has no '1'; valid: sft or 0"),
        ("0.pupils.sft.steps=1", "School has no '0'; valid: pupils, more"),
        ("pupils.math.sft.optim.betas.2=1", "pupils.math.sft.optim.betas has no '2'; valid: 0 to 1"),
        # A path that ends at something with parts, or that goes on behind something without.
        ("pupils.math.sft=1", f"pupils.math.sft: {PARTS} ({LESSON}), or JSON for the whole, got '1'"),
        ("pupils.math=x", f"pupils.math: {PARTS} ({PUPIL}), or JSON"),
        ("pupils=x,y", f"pupils: {PARTS} (math, code or 0 to 1), or JSON for the whole, got 'x,y'"),
        ("pupils.*=x", f"pupils.math: {PARTS} (name, "),
        ("pupils.math.sft.extra=1", f"pupils.math.sft.extra: {PARTS} (lr, betas), or JSON"),
        ("after=1", "after: expected JSON for the whole, got '1'"),
        ("pupils.math.sft=", f"pupils.math.sft: {PARTS} ("),
        ("more.router_0.1.route.weights=1", f"weights: {PARTS} (general), or JSON for the whole, got '1'"),
        ("more=x", f"more: {PARTS} (both-merged, router_0.1 or 0 to 1), or JSON for the whole"),
        ("pupils.math.sft={", "pupils.math.sft must be JSON, got '{': Expecting"),
        ("pupils.math.sft.steps.x=1", "pupils.math.sft.steps is null and has no field 'x'"),
        ("pupils.code.sft.extra.lr=1", "pupils.code.sft.extra is null and has no field 'lr'"),
        ("after.steps=1", "after is null and has no field 'steps'"),
        ("seed.1=1", "seed is 0 and has no field '1'"),
        # A value of a wrong type.
        ("pupils.math.sft.optim.lr=fast", "pupils.math.sft.optim.lr must be a finite float, got 'fast'"),
        ("pupils.*.sft.steps=few", "pupils.math.sft.steps must be int, got 'few'"),
        (
            "pupils.math.sft.data.math.share=[1]",
            "pupils.math.sft.data.math.share must be a finite float, got '[1]'",
        ),
        ("pupils.math.sft={}", "pupils.math.lessons.1.stage is missing, expected Stage"),
        ('pupils.math.sft.optim={"lr":1}', "pupils.math.lessons.sft.stage.optim.betas is missing"),
        # Every element, where there is none.
        ("pupils.*.dpo.steps=1", f"pupils.math has no 'dpo'; valid: {PUPIL}"),
        ("pupils.*.sft.optim.rate=1", "pupils.math.sft.optim has no 'rate'; valid: lr, betas"),
        ("more.*.route.stpes=1", "more.router_0.1.route has no 'stpes'; did you mean steps or stage? valid"),
        ("*.steps=1", "School has no elements for '*'; valid: pupils, more"),
        ("pupils.math.mid.data.*.share=1", "pupils.math.mid.data has no elements for '*'; valid: none"),
    ],
)
def test_what_leads_nowhere_is_one_line_that_lists_what_there_is(assignment, message):
    with pytest.raises(BarError, match=re.escape(message)) as caught:
        override(SCHOOL, [assignment])
    assert "\n" not in str(caught.value) and str(caught.value).startswith("config: ")


def test_names_that_are_hard_to_tell_apart():
    twins = School(pupils=tuple(Pupil(name=name, lessons=()) for name in ("1", "x", "x")))
    for name, message in (
        ("1", "pupils.1 is the name of several, expected one of 0, 1"),
        ("x", "pupils.x is the name of several, expected one of 1, 2"),
    ):
        with pytest.raises(BarError, match=message):
            override(twins, [f"pupils.{name}.start=x"])
    assert override(twins, ["pupils.0.start=y"]).pupils[0].start == "y"
    same = School(pupils=(Pupil(name="x", lessons=(lesson("sft"), lesson("sft"))),))
    with pytest.raises(BarError, match=r"sft is the name of several, expected one of lessons\.0, lessons\.1"):
        override(same, ["pupils.x.sft.steps=1"])
    assert override(same, ["pupils.x.lessons.1.steps=1"]).pupils[0].lessons[1].stage.steps == 1
    # A field of its own comes before a stage of that name, which its full path reaches.
    shadowed = School(pupils=(Pupil(name="x", lessons=(lesson("start"),)),))
    assert override(shadowed, ["pupils.x.start=y"]).pupils[0].start == "y"
    assert override(shadowed, ["pupils.x.lessons.start.steps=1"]).pupils[0].lessons[0].stage.steps == 1


@pytest.mark.parametrize(
    "assignments, message",
    [
        (["pupils.math.sft={}", "pupils.math.lessons.1.steps=1"], "lessons.1 is {} and has no field 'steps'"),
        (["pupils=[[]]", "pupils.0.steps=1"], "pupils.0 is [] and has no field 'steps'"),
        (['pupils=[1,{"name":["x"]}]', "pupils.math.steps=1"], "pupils has no 'math'; valid: 0 to 1"),
        (['more=[{"name":"x"}]', "more.x.inputs=a"], "more has no 'x'; valid: 0"),
        (["before={}"], "before.stage is missing, expected Stage"),
    ],
)
def test_a_whole_that_is_none_is_told_when_it_is_looked_into(assignments, message):
    with pytest.raises(BarError, match=re.escape(message)):
        override(SCHOOL, assignments)


words = st.from_regex(r"[a-z][a-z0-9_]{0,3}(\.[0-9])?", fullmatch=True)


@st.composite
def schools(draw) -> School:
    def pupil(name: str) -> Pupil:
        stages = draw(st.lists(words, unique=True, min_size=1, max_size=3))
        return Pupil(name=name, lessons=tuple(lesson(stage) for stage in stages))

    names = draw(st.lists(words.filter(lambda name: "." not in name), unique=True, min_size=1, max_size=3))
    return School(pupils=tuple(map(pupil, names)))


@given(schools(), st.data())
def test_every_stage_is_reached_by_its_names_alone(school, data):
    one = data.draw(st.integers(0, len(school.pupils) - 1))
    two = data.draw(st.integers(0, len(school.pupils[one].lessons) - 1))
    stage = school.pupils[one].lessons[two].stage.name
    path = f"pupils.{school.pupils[one].name}.{stage}"
    changed = override(school, [f"{path}.steps=7"])
    assert diff(school, changed) == [f"pupils.{one}.lessons.{two}.stage.steps: null -> 7"]
    every = override(school, ["pupils.*.*.steps=7"])
    assert len(diff(school, every)) == sum(len(pupil.lessons) for pupil in school.pupils)
    assert from_json(School, to_json(changed)) == changed


NAMES = (
    "pupils",
    "more",
    "before",
    "math",
    "code",
    "sft",
    "mid",
    "data",
    "general",
    "optim",
    "lr",
    "stage",
    "lessons",
)
KEYS = (*NAMES, "0", "1", "*", "", "x")
TEXTS = ("1", "", "none", "[]", "{}", "[{}]", '{"lr":1}', "x,y", "NaN", "[", '"', "null", '["\\n"]', "a\nb")
paths = st.lists(st.sampled_from(KEYS), min_size=1, max_size=7).map(".".join)


@given(st.lists(st.builds("{}={}".format, paths, st.sampled_from(TEXTS)), min_size=1, max_size=3))
def test_whatever_is_given_is_done_or_refused_in_one_line(assignments):
    try:
        changed = override(SCHOOL, assignments)
    except BarError as error:
        message = str(error)
    else:
        message = "config: changed"
        assert from_json(School, to_json(changed)) == changed
    assert message.startswith("config: ") and "\n" not in message
