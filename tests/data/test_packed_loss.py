"""Packing changes nothing: the loss of documents packed is the sum of their own, and none reads another, on
every layout."""

from pathlib import Path

import pytest
import torch
from distributed import run_distributed
from folders import save_hf
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_bar.data.indexed import in_memory
from megatron_bar.data.packing import CutRows, PackedRows
from megatron_bar.models import attention
from megatron_bar.models.build import build_model
from megatron_bar.models.shards import load_folder
from megatron_bar.parallel.state import ParallelConfig, set_layout
from megatron_bar.weights.folder import Folder

A, B = [5, 9, 11, 30, 7, 21, 8, 12], [6, 40, 41, 42, 3, 2]
LENGTH = 14
LAYOUTS = {
    "tp1": (ParallelConfig(), 1),
    "tp2_sp": (ParallelConfig(tensor=2), 2),
    "pp2": (ParallelConfig(pipeline=2), 2),
    "ep2": (ParallelConfig(expert=2), 2),
}


def document(ids: list[int]):
    return ids, [n > 1 for n in range(len(ids))]


def losses(
    folder: Path, layout: ParallelConfig, packing: str, moving: int
) -> list[tuple[float, torch.Tensor | None]]:
    """Of A, B and both packed: the loss, and its gradient with respect to the embeddings; then that of A's
    part alone."""
    before, attention.MOVING = attention.MOVING, moving
    try:
        return _losses(folder, layout, packing)
    finally:
        attention.MOVING = before  # these processes go on to other tests


def _losses(folder: Path, layout: ParallelConfig, packing: str) -> list[tuple[float, torch.Tensor | None]]:
    opened = Folder.open(folder)
    set_layout(layout, opened.config, seed=0)
    model = build_model(opened.config, layout)
    load_folder(model, opened)
    model.config.finalize_model_grads_func = None

    def rows(*documents):
        tokens = in_memory([document(ids) for ids in documents])
        if packing == "documents":
            return PackedRows([("x", tokens)], LENGTH, pad_id=0)
        # One token more, which the last label needs; the end of the stream is learnt by neither.
        more = in_memory([*(document(ids) for ids in documents), ([1], [False])])
        return CutRows("x", more, sum(map(len, documents)), masked=True)

    both = rows(A, B).take([0])
    of_a = (both.documents[0] == 0) & (both.labels[0] >= 0)
    return [
        one_pass(model, batch, keep, len(batch.ids[0]))
        for batch, keep in ((rows(A).take([0]), None), (rows(B).take([0]), None), (both, None), (both, of_a))
    ]


def one_pass(model, batch, keep, length: int):
    """Through Megatron's schedule, which sends activations and gradients between pipeline ranks."""
    seen = {}
    hook = None
    if model.pre_process:

        def watch(_, __, out):
            out.retain_grad()
            seen["embeddings"] = out

        hook = model.embedding.register_forward_hook(watch)
    model.zero_grad()

    def forward(iterator, model):
        given = next(iterator)
        out = model(given.ids, given.positions, labels=given.labels, documents=given.documents)

        def reduce(output):
            nll, _ = output
            loss = nll[0][keep].sum() if keep is not None else nll.sum()
            return loss, torch.tensor(1, dtype=torch.int), {"loss": loss.detach()}

        return out, reduce

    values = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iter([batch]),
        model=[model],
        num_microbatches=1,
        seq_length=length,
        micro_batch_size=1,
        forward_only=False,
    )
    gradient = None
    if hook is not None:
        hook.remove()
        gradient = seen["embeddings"].grad[:, 0]
        if model.config.sequence_parallel:
            parts = [
                torch.empty_like(gradient)
                for _ in range(parallel_state.get_tensor_model_parallel_world_size())
            ]
            torch.distributed.all_gather(
                parts, gradient.contiguous(), group=parallel_state.get_tensor_model_parallel_group()
            )
            gradient = torch.cat(parts)
    return (values[0]["loss"].item() if values else None), gradient


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("packed"), experts=2, seed=4, vocab_size=51)


@pytest.mark.parametrize("moving", [-(10**9), attention.MOVING], ids=["batch", "mask"])
@pytest.mark.parametrize("packing", ["documents", "cut_masked"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_documents_are_what_they_are_alone(folder, layout, packing, moving):
    layout, processes = LAYOUTS[layout]
    results = run_distributed(losses, processes, folder, layout, packing, moving)
    first = next(result for result in results if result[0][1] is not None)
    last = next(result for result in reversed(results) if result[0][0] is not None)
    a, b, both, part = (loss for loss, _ in last)
    print(
        f"{packing} {layout}: loss(a) {a:.6f} + loss(b) {b:.6f} - loss(packed) {both:.6f} = "
        f"{a + b - both:.1e}"
    )
    assert a + b == pytest.approx(both, abs=1e-5, rel=0)
    assert part == pytest.approx(a, abs=1e-5, rel=0)
    of_a, _, _, masked = (gradient for _, gradient in first)
    assert not masked[len(A) :].any(), "the loss of one document has a gradient in another"
    assert masked[: len(A)].any()
    torch.testing.assert_close(masked[: len(A)], of_a[: len(A)], rtol=1e-4, atol=1e-6)
