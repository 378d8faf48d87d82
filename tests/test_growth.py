"""benchmarks/bench_growth.py: exponents against closed forms, figures that are not decided, and a quick run."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from scripts import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import collect
import growth
import side_by_side

SIZES = [1.0, 2.0, 4.0, 8.0, 16.0]
LINEAR = growth.Quantity(
    name="work",
    over="pieces",
    sizes=(1, 2),
    make=lambda place, sizes: [],
    expected=1,
    why="each is done once",
)


def grown(seconds, rounds=(1.0, 1.0, 1.0)) -> growth.Growth:
    """What takes ``seconds(size)``, by a machine that is so many times slower in each round."""
    return growth.Growth(SIZES, [[slower * seconds(x) for slower in rounds] for x in SIZES])


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0, 1.3, 2.0])
def test_the_exponent_of_a_power_is_that_power_however_slow_the_machine_was_in_a_round(power):
    found = grown(lambda x: 0.7 * x**power, rounds=(1.0, 3.0, 1.7))
    assert found.exponents == pytest.approx([power] * 3, abs=1e-12)
    assert [s for slope in found.slopes for s in slope] == pytest.approx([power] * 12, abs=1e-12)
    assert found.bend is None


def test_the_exponent_is_the_least_squares_line_s():
    # Three points whose logarithms to base 2 are (0, 0), (1, 2), (2, 1): slope 1/2, though no two are on it.
    assert growth.exponent([1, 2, 4], [1, 4, 2]) == pytest.approx(0.5)


def test_what_is_the_same_at_any_size_is_found_and_bends_the_lower_end():
    found = grown(lambda x: 6.0 + 0.5 * x)
    assert found.fixed == pytest.approx((6.0, 0.5))
    assert max(found.exponents) < 0.4
    assert growth.bends(LINEAR, found).endswith("; 6 s at any size, the time of 12 pieces")


def test_it_bends_where_the_exponent_changes():
    found = grown(lambda x: x if x <= 4 else x * x / 4)
    assert found.sizes[found.bend] == 4
    assert growth.bends(replace(LINEAR, expected=2), found) == "at 4: 1.00 below, 2.00 above"
    # The same change, of rounds that differ by more: nothing can be said.
    powers = (0.0, 1.0, 2.0, 3.0, 4.0)
    assert growth.Growth(SIZES, [[x**p if x > 4 else x for p in powers] for x in SIZES]).bend is None


@pytest.mark.parametrize(
    "rounds, at_most, said",
    [
        ([0.98, 1.0, 1.02], True, "yes"),
        ([0.9, 1.0, 1.1], True, "not decided"),
        ([1.07, 1.08, 1.09], True, "no"),
        ([1.0, 1.08, 1.1], True, "not decided"),
        ([1.07, 1.08, 1.09], False, "yes"),
        ([1.08], False, "yes"),
        (1.08, False, "yes"),
        (1.0, False, "no"),
    ],
)
def test_a_figure_whose_spread_is_larger_than_its_distance_to_the_target_is_not_decided(
    rounds, at_most, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("BENCH_FIGURES", str(tmp_path / "figures"))
    side_by_side.figure("it", rounds, 1.05, at_most=at_most)
    line = capsys.readouterr().out
    value, *others = sorted(rounds)[len(rounds) // 2 :] if isinstance(rounds, list) else [rounds]
    assert line.startswith(f"ratio it {value:.3g} target 1.05")
    assert line.endswith("not decided\n") == (said == "not decided")
    written = json.loads((tmp_path / "figures").read_text())
    row = collect.table("a machine", {written.pop("name"): written | {"date": "today", "versions": {}}})
    assert f"| {said} | today |" in row
    assert (", spread" in row) == bool(others)


def test_the_spread_is_the_distance_of_the_quartiles():
    assert side_by_side.spread([5.0, 1.0, 2.0, 3.0, 100.0]) == 3.0


def test_a_square_misses_the_target_also_behind_a_cost_that_stays_the_same(capsys):
    growth.tell(LINEAR, grown(lambda x: 30 + x * x))
    *_, whole, last = capsys.readouterr().out.splitlines()
    assert whole.startswith("ratio growth_work_exponent 0.7")
    assert last == "ratio growth_work_last_exponent 1.61 target 1.05 spread 0"  # log2(286 / 94) = 1.605
    row = growth.tell(LINEAR, grown(lambda x: x * x))
    assert "ratio growth_work_exponent 2 target 1.05 spread 0\n" in capsys.readouterr().out
    assert row == (
        "| work | pieces | 1: each is done once | 1 to 16: 1 to 256 s | 2.00, spread 0.00 | nowhere |"
    )


def test_a_quick_run_prints_a_table_of_each_and_one_of_all(tmp_path):
    names = ["branch", "preprocessing", "report"]
    command = [sys.executable, ROOT / "benchmarks/bench_growth.py", "--quick", "--only", *names]
    env = os.environ | {"PYTHONPATH": str(ROOT), "BENCH_FIGURES": str(tmp_path / "figures")}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for name in names:
        table = done.stdout.split(f"\n{name}: expected exponent 1")[1].split("\n\n")[0].splitlines()
        (small, *_), (large, *_) = (line.split() for line in table[2:])
        assert 1.8 < int(large.replace(",", "")) / int(small.replace(",", "")) < 2.1
    rows = [line.split(" | ")[0] for line in done.stdout.split(growth.SUMMARY)[1].splitlines()]
    assert rows == [f"| {name}" for name in names]
    assert "ratio" not in done.stdout and not (tmp_path / "figures").exists()
