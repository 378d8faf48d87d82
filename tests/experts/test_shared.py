"""The ways to combine shared tensors, and the report on them, against numpy after each paper's own words."""

import numpy as np
import pytest
import torch
from folders import train_with
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from megatron_bar.errors import BarError
from megatron_bar.experts.merge import merge
from megatron_bar.experts.merge_report import at_risk, markdown, measure
from megatron_bar.experts.shared import COMBINE, Combination, disagreement
from megatron_bar.weights.manifest import read_manifest

SHAPE = (1100, 3)
"""More rows than a block."""


def draws(count: int, seed: int = 0) -> list[torch.Tensor]:
    """A base and ``count`` tensors near it."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(SHAPE, generator=generator)
    return [base, *(base + 0.1 * torch.randn(SHAPE, generator=generator) for _ in range(count))]


def deltas(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    return [(tensor.double() - tensors[0].double()).numpy() for tensor in tensors[1:]]


def assert_close(found: torch.Tensor, base: torch.Tensor, delta: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), base.double().numpy() + delta, rtol=1e-6, atol=1e-7)


def settings(method: str, inputs: int) -> Combination:
    return Combination(method=method, weights=(1.0,) * inputs if method == "weighted" else ())


@given(st.sampled_from(list(COMBINE)), st.integers(2, 5), st.sampled_from([torch.float32, torch.bfloat16]))
def test_what_nobody_moved_keeps_its_bits(method, inputs, dtype):
    tensor = draws(0)[0].to(dtype)
    assert torch.equal(settings(method, inputs)("x", [tensor] * inputs), tensor)


def test_weighted_is_the_weighted_mean():
    tensors = draws(2)
    found = Combination(method="weighted", weights=(1.0, 2.0, 5.0))("x", tensors)
    np.testing.assert_allclose(
        found, np.average(np.stack(tensors), axis=0, weights=[1, 2, 5]), rtol=1e-5, atol=1e-6
    )


def test_task_arithmetic_adds_scaled_deltas():
    tensors = draws(3)
    assert_close(
        Combination(method="task-arithmetic", scale=0.4)("x", tensors), tensors[0], 0.4 * sum(deltas(tensors))
    )


def test_first_is_the_first_expert():
    tensors = draws(2)
    assert torch.equal(Combination(method="first")("x", tensors), tensors[1])


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_trims_elects_and_merges(density):
    """Entry by entry, as the algorithm of arXiv 2306.01708 is written."""
    tensors = draws(3, seed=5)
    trimmed = []
    for delta in deltas(tensors):
        keep = np.zeros(delta.size, bool)
        keep[np.argsort(-np.abs(delta.ravel().astype(np.float32)))[: round(density * delta.size)]] = True
        trimmed.append(np.where(keep.reshape(delta.shape), delta, 0.0))
    expected = np.zeros(SHAPE)
    for place in np.ndindex(SHAPE):
        values = [t[place] for t in trimmed]
        sign = np.sign(sum(values))
        agree = [v for v in values if v != 0 and np.sign(v) == sign]
        expected[place] = np.mean(agree) if agree else 0.0
    assert_close(
        Combination(method="ties", density=density, scale=0.7)("x", tensors), tensors[0], 0.7 * expected
    )


def test_dare_drops_and_rescales():
    tensors = draws(1)
    (delta,) = deltas(tensors)
    found = (
        Combination(method="dare", density=0.25)("x", tensors).double().numpy() - tensors[0].double().numpy()
    )
    kept = np.abs(found) > 1e-6
    assert abs(kept.mean() - 0.25) < 0.03
    np.testing.assert_allclose(found[kept], 4 * delta[kept], atol=1e-6)
    assert not torch.equal(*(Combination(method="dare", seed=seed)("x", tensors) for seed in (0, 1)))
    assert not torch.equal(*(Combination(method="dare")(name, tensors) for name in "xy"))
    everything = draws(3)
    assert_close(
        Combination(method="dare", density=1.0)("x", everything), everything[0], sum(deltas(everything)) / 3
    )


@given(arrays.arrays(np.float64, (4, 2, 3), elements=st.integers(-4, 4).map(float)))
def test_the_disagreement_is_what_numpy_finds(stack):
    found = disagreement([torch.from_numpy(row) for row in stack])
    moved = [(row - stack[0]).ravel() for row in stack[1:]]
    norms = [np.linalg.norm(delta) for delta in moved]
    if base := np.linalg.norm(stack[0]):
        np.testing.assert_allclose(found.moved, np.array(norms) / base)
    for (a, b), cosine in found.cosines.items():
        assert cosine == pytest.approx(moved[a] @ moved[b] / norms[a] / norms[b], abs=1e-12)
    assert set(found.cosines) == {(a, b) for a in range(3) for b in range(a + 1, 3) if norms[a] and norms[b]}
    both = sum(any(d[k] > 0 for d in moved) and any(d[k] < 0 for d in moved) for k in range(6))
    several = sum(sum(d[k] != 0 for d in moved) > 1 for k in range(6))
    assert found.conflicts == (both / several if several else 0)
    assert found.kept == pytest.approx(np.linalg.norm(sum(moved)) / sum(norms) if sum(norms) else 1)


def test_opposed_deltas_are_at_risk_and_right_angles_are_not():
    base = torch.zeros(1, 3)
    x, y = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 1.0, 0]])
    assert not at_risk(disagreement([base, x, y])) and not at_risk(disagreement([base, x, x]))
    assert not at_risk(disagreement([base, x, base]))
    assert at_risk(disagreement([base, x, -x])) and at_risk(disagreement([base, x, y - x]))


@pytest.mark.parametrize("method", COMBINE)
def test_a_merge_combines_what_is_shared_and_nothing_else(branched, tmp_path, method):
    """Two experts that move the head in opposite directions, and their own FFNs."""
    paths = {}
    for name, step in (("one", 0.25), ("two", -0.5)):
        paths[name] = train_with(
            branched,
            tmp_path / name,
            "sft",
            lambda n, t, step=step: t + step * (n == "lm_head.weight" or ".experts.1." in n),
            expert=name,
        )
    from folders import load_tensors

    shared = Combination(method=method, density=1.0, weights=(1.0, 1.0, 2.0) if method == "weighted" else ())
    out = merge(branched, paths, tmp_path / "out", shared=shared).path
    made, before = load_tensors(out), load_tensors(branched)
    deltas = {
        "mean": -0.25 / 3,
        "weighted": -0.75 / 4,
        "task-arithmetic": -0.25,
        "ties": -0.5,
        "dare": -0.125,
        "first": 0.25,
    }
    torch.testing.assert_close(
        made["lm_head.weight"], before["lm_head.weight"] + deltas[method], rtol=1e-6, atol=1e-6
    )
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.experts.0.up_proj.weight"):
        assert torch.equal(made[name], before[name])
    two = "model.layers.0.mlp.experts.{}.up_proj.weight"
    assert torch.equal(made[two.format(2)], before[two.format(1)] - 0.5)
    assert (
        read_manifest(out).notes[0]
        == f"shared tensors: {shared.describe()} of 3 folders, the anchor included"
    )
    lines = markdown(measure(branched, paths), list(paths)).splitlines()
    assert any(line.startswith("1 of ") and line.endswith("; 1 are at risk.") for line in lines)
    (head,) = (line for line in lines if line.startswith("| lm_head.weight |"))
    assert head.endswith("| -1.00 | 100% | 0.33 | ! |")


@pytest.mark.parametrize(
    "given_, message",
    [
        ({"method": "median"}, "shared expected one of mean, weighted"),
        ({"weights": (1.0,)}, "weights expected with weighted and with nothing else"),
        ({"method": "weighted"}, "weights expected with weighted"),
        ({"method": "weighted", "weights": (0.0, 0.0)}, "not all 0"),
        ({"method": "weighted", "weights": (1.0, -1.0)}, "weights expected of 0 and more"),
        ({"method": "ties", "density": 0.0}, "density expected above 0"),
        ({"method": "dare", "scale": float("nan")}, "a finite scale"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given_, message):
    with pytest.raises(BarError, match=message):
        Combination(**given_)


def test_weights_of_another_number_of_inputs_are_refused(branched, experts, tmp_path):
    with pytest.raises(BarError, match="expected 4 weights, the anchor's first, got 2"):
        merge(branched, experts, tmp_path / "out", shared=Combination(method="weighted", weights=(1.0, 1.0)))
    assert not (tmp_path / "out").exists()
