"""The scan of active experts against transformers' losses, and what it chooses."""

import pytest
import torch
from distributed import run_distributed
from folders import save_hf
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.data.indexed import in_memory
from megatron_bar.data.packing import PackedRows
from megatron_bar.evaluation.generative import load_model
from megatron_bar.evaluation.routing.scan import Scan, fewest, scan
from megatron_bar.evaluation.validation import held_out_rows, mean_loss
from megatron_bar.parallel.state import ParallelConfig

EXPERTS, LAYERS = 4, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("scan"), experts=EXPERTS, num_hidden_layers=LAYERS, seed=8)


def documents() -> list[list[int]]:
    return torch.randint(1, 19, (6, 9), generator=torch.Generator().manual_seed(2)).tolist()


def scanned(folder, layout: ParallelConfig, tolerance: float) -> Scan:
    rows = PackedRows([("x", in_memory([(ids, [True] * len(ids)) for ids in documents()]))], 20, pad_id=0)
    assert len(rows) == 3  # two ranks cannot share them evenly
    model = load_model(folder, layout)
    before = model.routing
    found = scan(model, [rows], tolerance=tolerance)
    assert model.routing == before and len(model.decoder.layers) == LAYERS
    return found


@torch.no_grad()
def theirs(folder, active: tuple[int, ...]) -> float:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for layer, k in zip(model.model.layers, active, strict=True):
        layer.mlp.gate.top_k = k
    ids = torch.tensor(documents())
    return float(
        torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    )


@pytest.mark.parametrize(
    "layout, processes",
    [
        (ParallelConfig(), 1),
        (ParallelConfig(tensor=2), 2),
        (ParallelConfig(), 2),
        (ParallelConfig(expert=2), 2),
    ],
    ids=["tp1", "tp2", "dp2", "ep2"],
)
def test_costs_are_transformers(layout, processes, folder):
    everything = theirs(folder, (EXPERTS,) * LAYERS)
    found = run_distributed(scanned, processes, folder, layout, 0.5)[0]
    assert found.all_active == pytest.approx(everything, rel=1e-5)
    for layer in range(LAYERS):
        for k in range(1, EXPERTS + 1):
            active = tuple(k if n == layer else EXPERTS for n in range(LAYERS))
            assert found.costs[layer][k - 1] == pytest.approx(theirs(folder, active) - everything, abs=2e-5)
    assert found.chosen != (EXPERTS,) * LAYERS
    assert found.loss == pytest.approx(theirs(folder, found.chosen), rel=1e-5)


@given(
    st.lists(
        st.lists(st.floats(-0.5, 2), min_size=3, max_size=3).map(lambda row: [*row, 0.0]),
        min_size=1,
        max_size=4,
    ),
    st.floats(0, 3),
)
def test_what_is_chosen_stays_within_the_tolerance_and_nothing_more_would(costs, tolerance):
    chosen = fewest(costs, tolerance=tolerance)
    total = sum(row[k - 1] for row, k in zip(costs, chosen, strict=True))
    assert total <= tolerance + 1e-12 and all(1 <= k <= 4 for k in chosen)
    for row, k in zip(costs, chosen, strict=True):
        assert all(total - row[k - 1] + row[fewer - 1] > tolerance - 1e-12 for fewer in range(1, k))


@given(
    st.lists(st.lists(st.floats(-0.5, 2), min_size=4, max_size=4), min_size=1, max_size=5),
    st.floats(1, 5),
)
def test_the_mean_is_what_is_asked_for_or_the_least_above(costs, mean):
    chosen = fewest([[*row, 0.0] for row in costs], mean=mean)
    assert mean * len(costs) <= sum(chosen) < mean * len(costs) + 1


def test_cheap_layers_give_theirs_first():
    costs = ((0.9, 0.5, 0.0), (0.3, 0.1, 0.0))
    assert [fewest(costs, tolerance=t) for t in (0.0, 0.11, 0.31, 0.81, 5)] == [
        (3, 3),
        (3, 2),
        (3, 1),
        (2, 1),
        (1, 1),
    ]
    assert fewest(costs, mean=2) == (3, 1) and fewest(costs, tolerance=0.2, mean=2) == (3, 2)


def losses(folder) -> list[float]:
    tokens = in_memory([(ids, [True] * len(ids)) for ids in documents()])
    short, long = (held_out_rows("x", tokens, length, pad_id=0) for length in (1024, 32))
    assert (short.length, len(short), long.length, len(long)) == (64, 1, 32, 2)
    padded = PackedRows([("x", tokens)], 1024, pad_id=0)
    model = load_model(folder, ParallelConfig())
    return [mean_loss(model, rows) for rows in (short, long, padded)]


def test_rows_are_as_short_as_their_documents_allow(folder):
    short, *others = run_distributed(losses, 1, folder)[0]
    assert others == pytest.approx([short, short], rel=1e-6)


def test_without_held_out_chats_there_is_nothing_to_scan(folder):
    with pytest.raises(Exception, match="scan: expected held-out chats, got none"):
        run_distributed(nothing, 1, folder)


def test_chats_without_an_answer_are_refused(folder):
    with pytest.raises(
        Exception, match="x: expected held-out chats with answers to learn from, got no such token"
    ):
        run_distributed(unlearnt, 1, folder)


def unlearnt(folder) -> None:
    rows = PackedRows([("x", in_memory([(ids, [False] * len(ids)) for ids in documents()]))], 32, pad_id=0)
    scan(load_model(folder, ParallelConfig()), [rows], tolerance=0.1)


def nothing(folder) -> None:
    scan(load_model(folder, ParallelConfig()), [], tolerance=0.1)
