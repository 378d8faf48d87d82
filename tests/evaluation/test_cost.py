"""Prices by closed forms; a ledger's parts told apart; bad folders refused."""

from pathlib import Path

import pytest

from megatron_bar.errors import BarError
from megatron_bar.evaluation.cost import as_json, growth, lines, price, read_bill, read_ledger, retraining
from megatron_bar.weights.manifest import Cost, Expert, Manifest


def cost(step: str, expert: str | None, flops: float, **changes) -> Cost:
    numbers = {"tokens": 10, "loss_tokens": 5, "generated": 0, "seconds": 2.0, "devices": 3}
    return Cost(
        step=step, stage=step.rpartition("-")[2], expert=expert, flops=flops, device="x", **numbers | changes
    )


START = (cost("base", None, 100.0), cost("anchor", None, 50.0))
OWN = (
    cost("math-sft", "math", 3.0),
    cost("math-rlvr", "math", 4.0, generated=90),
    cost("code-sft", "code", 7.0),
)
ROUTER = (cost("final", None, 1.0), cost("final", None, 2.0))
NAMES = ("anchor", "math", "code")


def save(path: Path, ledger: tuple[Cost, ...], kind: str = "routed") -> Path:
    path.mkdir()
    experts = tuple(Expert(index=n, name=name) for n, name in enumerate(NAMES))
    Manifest(family="flex_olmo", kind=kind, experts=experts, ledger=ledger).write(path)
    return path


@pytest.fixture
def bill(tmp_path):
    return read_bill(save(tmp_path / "final", (*START, *OWN, *ROUTER)))


def test_an_update_is_the_experts_stages_and_the_last_routing(bill):
    assert (bill.start, bill.router) == (START, ROUTER)
    assert bill.experts == {"math": OWN[:2], "code": OWN[2:]}
    assert bill.update("math") == price([*OWN[:2], ROUTER[1]])
    assert vars(bill.update("math")) == {"tokens": 120, "flops": 9.0, "device_seconds": 18.0}


def test_retraining_is_measured_or_the_sum_of_the_domains(bill):
    assert retraining(bill, None) == price(OWN)
    assert retraining(bill, (*START, cost("retrain", None, 40.0))).flops == 40.0


def test_before_the_router_is_trained_it_costs_nothing(tmp_path):
    bill = read_bill(save(tmp_path / "merged", (*START, *OWN), "merged"))
    assert bill.update("code") == price(OWN[2:])
    assert "its router is not trained yet" in "\n".join(lines(bill, None, 2))


@pytest.mark.parametrize("monolithic", [None, (*START, cost("retrain", None, 40.0))], ids=["sum", "measured"])
def test_modular_growth_is_linear_and_retraining_quadratic(bill, monolithic):
    """Every domain costs 7, the router 2: n * 9 against a n (n + 1) / 2, with a of one domain's part of
    retraining."""
    part = 7.0 if monolithic is None else 20.0
    for n, row in enumerate(growth(bill, monolithic, 9), start=1):
        assert (row.domains, row.extrapolated) == (n, n > 2)
        assert row.modular.flops == pytest.approx(9.0 * n)
        assert row.retrained.flops == pytest.approx(part * n * (n + 1) / 2)


def test_unequal_domains_come_in_their_order_and_then_at_their_mean(tmp_path):
    ledger = (cost("m", "math", 2.0), cost("c", "code", 6.0), cost("final", None, 1.0))
    rows = growth(read_bill(save(tmp_path / "final", ledger)), None, 3)
    assert [row.modular.flops for row in rows] == [3.0, 10.0, 15.0]
    assert [row.retrained.flops for row in rows] == [2.0, 10.0, 22.0]


def test_json_and_lines_say_the_same(bill):
    found, told = as_json(bill, None, 4), "\n".join(lines(bill, None, 4))
    assert [entry["step"] for entry in found["entries"]] == [c.step for c in (*START, *OWN, *ROUTER)]
    assert found["retraining"] == {"tokens": 120, "flops": 14.0, "device_seconds": 18.0, "measured": False}
    assert found["growth"][3]["extrapolated"] and "taken as the sum of all domains' stages" in told
    assert "math         120     9      18.0            1.6 x" in told


def test_what_has_no_ledger_is_refused(tmp_path):
    unpaid = (*START, *OWN[:2])
    for folder, message in {
        tmp_path / "nowhere": r"nowhere: expected a folder, got none",
        save(
            tmp_path / "empty", ()
        ): r"empty/manifest\.json: ledger expected with an entry for every stage, got none",
        save(tmp_path / "dense", START, "dense"): r"dense: expected a merged model, got kind 'dense'",
        save(
            tmp_path / "unpaid", unpaid
        ): r"unpaid/manifest\.json: ledger expected with the stages of expert 'code', got none",
    }.items():
        with pytest.raises(BarError, match=message):
            read_bill(folder)
    with pytest.raises(BarError, match=r"manifest\.json: expected a folder, got a file"):
        read_ledger(tmp_path / "empty/manifest.json")
