"""AlpacaEval: the judge's probabilities, and the length-controlled rate against alpaca_eval's own fit."""

import ast
import csv
import io
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from packages import package

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19 import alpaca_eval
from megatron_bar.evaluation.benchmarks.bar19.length_control import Preference, controlled
from megatron_bar.evaluation.benchmarks.benchmark import Grade

ROWS = [
    {"instruction": f"Name {n} rivers.", "output": f"The Nile and {n} more.", "index": n} for n in range(40)
]


class Judge:
    """Prefers the answer with the word 'better', by the odds it is made with."""

    def __init__(self, odds: float = 9.0):
        self.odds, self.asked = odds, 0

    def first_token(self, messages, *, top=5):
        self.asked += 1
        first, second = messages[1]["content"].split('"model_identifier": "M"')
        odds = self.odds * (("better" in first) - ("better" in second.partition("## Task")[0]))
        return {
            "m": math.log(1 / (1 + math.exp(-odds))),
            "M": math.log(1 / (1 + math.exp(odds))),
            "The": -9.0,
        }


def test_preferred_and_not_in_both_orders():
    better = [alpaca_eval.grade(row, [f"A better answer {row['index']}."], Judge()) for row in ROWS]
    assert {grade.detail["first"] for grade in better} == {True, False}
    assert all(grade.score == pytest.approx(1 / (1 + math.exp(-9))) for grade in better)
    worse = [alpaca_eval.grade(row, ["Mine."], Judge(-9)) for row in ROWS]
    assert all(grade.score == pytest.approx(0.5) for grade in worse)  # the judge finds neither better
    worse = [alpaca_eval.grade(row | {"output": "a better one"}, ["Mine."], Judge()) for row in ROWS]
    assert all(grade.score == pytest.approx(1 / (1 + math.exp(9))) for grade in worse)
    assert alpaca_eval.BENCHMARK.combine(ROWS, better) == pytest.approx(1, abs=1e-3)
    assert alpaca_eval.BENCHMARK.caveat(ROWS) == "rows without df_gamed.csv: the raw win rate"


def test_equal_and_silent_answers_need_no_judgement():
    judge = Judge()
    assert alpaca_eval.grade(ROWS[0], [ROWS[0]["output"]], judge).score == 0.5
    assert alpaca_eval.grade(ROWS[0], [" \n"], judge).score == 0
    assert judge.asked == 0


class Fixed:
    def __init__(self, tokens):
        self.tokens = tokens

    def first_token(self, messages, *, top=5):
        return self.tokens


@pytest.mark.parametrize(
    "tokens", [{}, {"The": -0.1}, {" m": -0.1}, {"m": math.nan}, {"m": -math.inf, "M": -math.inf}]
)
def test_nonsense_is_no_score(tokens):
    with pytest.raises(BarError, match="judge pairwise: expected m or M among its first tokens, found"):
        alpaca_eval.grade(ROWS[0], ["Mine."], Fixed(tokens))
    with pytest.raises(BarError, match="--judge pairwise=URL"):
        alpaca_eval.grade(ROWS[0], ["Mine."], None)


@pytest.mark.parametrize(
    "tokens, second",
    [({"m": -0.1}, 0), ({"M": -3.0}, 1), ({"m": -900.0, "M": 0.0}, 1), ({"m": 0.0, "M": -900.0}, 0)],
)
def test_a_token_that_is_missing_has_no_probability(tokens, second):
    grades = [alpaca_eval.grade(row, ["Mine."], Fixed(tokens)) for row in ROWS[:8]]
    assert [grade.score for grade in grades] == [
        1 - second if grade.detail["first"] else second for grade in grades
    ]


def drawn(seed: int, items: int):
    """Preferences that depend on length and difficulty, and those of two gamed answers to each item."""
    draw = np.random.default_rng(seed)
    difficulty = draw.normal(size=items) * 1.5
    longer = draw.normal(300 * seed - 200, 800, size=items).astype(int)
    odds = 0.5 * difficulty - 0.8 + 0.6 * np.tanh(-longer / 800) + draw.normal(size=items)
    gamed = np.stack([draw.beta(3, 2, size=items), draw.beta(2, 3, size=items)], axis=1)
    return 1 / (1 + np.exp(-odds)), longer, difficulty, gamed


@pytest.fixture(scope="module")
def published_fit():
    """alpaca_eval's own regression, out of its file: the package itself asks for many others."""
    sklearn = pytest.importorskip("sklearn")
    pandas = pytest.importorskip("pandas")
    from sklearn import linear_model, metrics, model_selection

    path = package("alpaca-eval==0.6.6") / "alpaca_eval/metrics/glm_winrate.py"
    names = ("logloss", "logloss_continuous", "fit_LogisticRegressionCV")
    body = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") in names]
    space = (
        {"np": np, "pd": pandas, "sklearn": sklearn}
        | vars(linear_model)
        | vars(metrics)
        | vars(model_selection)
    )
    exec(compile(ast.Module(body, []), str(path), "exec"), space)
    yield space["fit_LogisticRegressionCV"]
    sklearn.set_config(enable_metadata_routing=False)


@pytest.mark.parametrize("seed", range(3))
def test_the_length_controlled_rate_is_alpaca_evals(published_fit, seed):
    """Both pick a strength out of ten by held-out loss; neighbours may tie."""
    import pandas

    values, longer, difficulty, gamed = drawn(seed, 805)
    rows = [
        {"instruction_difficulty": d, "gamed": [[a, 1.2], [b, -0.9]]}
        for d, (a, b) in zip(difficulty, gamed, strict=True)
    ]
    grades = [Grade(score=float(v), detail={"longer": int(n)}) for v, n in zip(values, longer, strict=True)]
    ours = alpaca_eval.BENCHMARK.combine(rows, grades)
    assert alpaca_eval.BENCHMARK.caveat(rows) == ""

    def frame(lengths, model, preference):
        return pandas.DataFrame(
            {"length": lengths, "difficulty": difficulty, "model": model, "preference": preference}
        )

    own = frame(np.tanh(longer / pandas.Series(longer).std()), 1.0, values)
    others = [frame(np.tanh(length), 0.0, gamed[:, at]) for at, length in enumerate((1.2, -0.9))]
    weights = pandas.Series(np.concatenate([np.full(2 * 805, 0.2 / 2), np.ones(805)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = published_fit(
            pandas.concat([*others, own], ignore_index=True), "preference", sample_weight=weights
        )
    at_no_difference = own.drop(columns="preference").assign(length=0.0)
    assert ours == pytest.approx(model.predict_proba(at_no_difference)[:, 1].mean(), abs=2e-4)
    assert abs(ours - values.mean()) > 1e-3


def test_length_that_is_all_there_is_to_an_answer_wins_nothing():
    """Preferred for its length alone: half at no difference."""
    draw = np.random.default_rng(0)
    longer = draw.normal(-1500, 1500, size=400)
    values = 1 / (1 + np.exp(3 * np.tanh(longer / longer.std(ddof=1))))
    preferences = [
        Preference(value=float(v), longer=int(n), difficulty=0.0) for v, n in zip(values, longer, strict=True)
    ]
    gamed = [[[0.9, -1.5], [0.1, 1.5]]] * 400
    assert values.mean() > 0.7
    assert controlled(preferences, gamed) == pytest.approx(0.5, abs=0.05)


def test_equal_lengths_and_few_rows():
    preferences = [Preference(value=n / 20, longer=0, difficulty=1.0) for n in range(20)]
    assert 0 < controlled(preferences, [[[0.5, 0.0]]] * 20) < 1
    rows = alpaca_eval.with_gamed(
        ROWS[:9],
        [{"index": n, "instruction_difficulty": 1, "preference": 0.5, "std_delta_len": 0} for n in range(9)],
    )
    assert alpaca_eval.BENCHMARK.combine(rows, [Grade(score=0.25, detail={"longer": 3})] * 9) == 0.25
    assert alpaca_eval.BENCHMARK.caveat(rows) == "fewer than 10 rows: the raw win rate"


CSV = """index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline,model
0,0.75,1.5,-0.25,False,verbose
1,,1.25,2.5,False,verbose
0,0.25,-1.5,-0.25,False,concise
1,0.5,-0.5,2.5,False,concise
"""


def test_terms_of_the_regression_are_joined_into_the_rows():
    lines = list(csv.DictReader(io.StringIO(CSV)))
    assert alpaca_eval.with_gamed(ROWS[:2], lines) == [
        ROWS[0] | {"instruction_difficulty": -0.25, "gamed": [[0.75, 1.5], [0.25, -1.5]]},
        ROWS[1] | {"instruction_difficulty": 2.5, "gamed": [[0.5, -0.5]]},
    ]
    with pytest.raises(BarError, match=r"df_gamed.csv: expected lines of index 2, found none"):
        alpaca_eval.with_gamed(ROWS[:3], lines)


def test_scikit_learn_that_is_not_there_is_told():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from megatron_bar.evaluation.benchmarks.bar19.length_control import Preference, controlled\n"
        "controlled([Preference(value=0.5, longer=n, difficulty=1.0) for n in range(10)], [[[0.5, 0.0]]] * 10)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and "expected the package scikit-learn, found none; pip install" in done.stderr
