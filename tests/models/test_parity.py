"""Logits and gradients of the Megatron model against transformers' at every layout, on weights that are all
random.

A round trip proves nothing about layout; only numbers from another implementation do. ``pytest -s`` prints
the figures.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from distributed import run_distributed
from folders import LLAMA3, load_tensors, save_hf
from megatron_writer import save_weights

from megatron_bar.data.packing import NO_LOSS, Batch
from megatron_bar.errors import BarError
from megatron_bar.models import torch_dist
from megatron_bar.models.shards import save_folder
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hf_config import tensor_shapes
from megatron_bar.weights.manifest import Manifest
from megatron_bar.weights.writer import WriteOptions

ROWS, LENGTH, ROUTER_Z, HEAD_Z = 4, 16, 0.5, 0.05
SHAPE = {"vocab_size": 1003, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
MODELS = {
    "dense": SHAPE,
    "dense-mha": SHAPE | {"num_key_value_heads": 4},
    "2of2": SHAPE | {"experts": 2},
    "5of5": SHAPE | {"experts": 5},
    "2of5": SHAPE | {"experts": 5, "num_experts_per_tok": 2},
    "2of4": SHAPE | {"experts": 4, "num_experts_per_tok": 2},
    "2of4-norm": SHAPE | {"experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    "qwen3": {"family": "qwen3", "head_dim": 12, "tie_word_embeddings": True},
    "qwen3-2of2": {"family": "qwen3", "head_dim": 12, "experts": 2},
    "qwen3-5of5": {"family": "qwen3", "head_dim": 12, "experts": 5},
    "qwen3-2of5": {"family": "qwen3", "head_dim": 12, "experts": 5, "num_experts_per_tok": 2},
    "qwen3-2of5-raw": {
        "family": "qwen3",
        "experts": 5,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
    },
    "qwen3-2of4": {"family": "qwen3", "experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    "llama": {"family": "llama", "rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "llama-2of2": {"family": "llama", "rope_parameters": LLAMA3, "experts": 2, "head_dim": 12},
    "llama-5of5": {"family": "llama", "experts": 5},
    "llama-2of5": {"family": "llama", "experts": 5, "num_experts_per_tok": 2},
    "mistral": {"family": "mistral", "head_dim": 6},
    "qwen2": {"family": "qwen2"},
    "qwen2-2of2": {"family": "qwen2", "experts": 2},
    "qwen2-5of5": {"family": "qwen2", "experts": 5},
    "qwen2-2of5": {"family": "qwen2", "experts": 5, "num_experts_per_tok": 2},
    "qwen2-2of5-raw": {
        "family": "qwen2",
        "experts": 5,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
    },
}
OTHERS = ("qwen3", "llama", "qwen2")
"""Families beside OLMo 2 that have blocks of their own; Mistral's is Llama's."""
CASES = [
    # (model, tensor, pipeline, expert, processes)
    *((model, 1, 1, 1, 1) for model in MODELS),
    *((model, 2, 1, 1, 2) for model in ("dense", "dense-mha", "2of2", "5of5", "2of5")),
    *((model, 1, 2, 1, 2) for model in ("dense", "2of2")),
    *((model, 1, 1, 2, 2) for model in ("2of2", "5of5", "2of5", "2of4", "2of4-norm")),
    *((model, 2, 1, 2, 4) for model in ("2of2", "2of4", "2of5")),
    ("5of5", 1, 1, 4, 4),
    ("dense", 2, 2, 1, 4),
    ("dense", 1, 1, 1, 2),
    *((model, 2, 1, 1, 2) for name in OTHERS for model in (name, f"{name}-2of2", f"{name}-2of5")),
    *((model, 1, 2, 1, 2) for name in OTHERS for model in (name, f"{name}-2of2")),
    *((f"{name}-{experts}", 1, 1, 2, 2) for name in OTHERS for experts in ("2of2", "5of5")),
    *((f"{name}-2of2", 2, 1, 2, 4) for name in OTHERS),
    ("qwen3-2of4", 1, 1, 2, 2),
    ("qwen3-2of4", 2, 1, 2, 4),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(model: str) -> Path:
        if model not in made:
            made[model] = save_hf(tmp_path_factory.mktemp(model), seed=len(made), **(SHAPE | MODELS[model]))
        return made[model]

    return folder


@pytest.mark.parametrize("model, tensor, pipeline, expert, processes", CASES)
def test_parity(model, tensor, pipeline, expert, processes, folders, tmp_path):
    layout = ParallelConfig(tensor=tensor, pipeline=pipeline, expert=expert)
    source = folders(model)
    figures = run_distributed(compare, processes, source, layout, tmp_path)[0]
    print(f"\nparity {model} tensor {tensor} pipeline {pipeline} expert {expert} x{processes}: {figures}")
    assert figures["logits"] <= 1e-5
    assert figures["gradient"] <= 1e-4, figures
    assert figures["norm"] <= 1e-5
    expected = load_tensors(source)
    expected.setdefault("lm_head.weight", expected["model.embed_tokens.weight"])
    for back in ("folder", "checkpoint"):
        assert equal(expected, load_tensors(tmp_path / back)), back


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, and labels of which about a third carry no loss, in the first row, a micro-batch, none. No padding
    id: transformers gives its embedding no gradient."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(1, SHAPE["vocab_size"], (ROWS, LENGTH), generator=generator)
    labels = ids.roll(-1, dims=1)
    labels[torch.rand(ids.shape, generator=generator) < 0.3] = NO_LOSS
    labels[:, -1] = NO_LOSS
    labels[0] = NO_LOSS
    return ids, labels


def compare(source: Path, layout: ParallelConfig, out: Path) -> dict[str, float] | None:
    stage = Stage(
        name="parity",
        policy="rlvr_open" if Folder.open(source).config.num_experts else "dense_all",
        optim=OptimConfig(lr=1e-3),
        sequence=LENGTH,
        batch=ROWS,
        router_z_loss=ROUTER_Z,
        head_z_loss=HEAD_Z,
        parallel=layout,
    )
    trainer = Trainer(source, stage, steps=1)
    ids, labels = rows()
    logits = all_logits(trainer.model, ids)
    manifest = Manifest(family=trainer.model.shape.model_type, kind="dense")
    save_folder(
        trainer.model,
        out / "folder",
        companions_from=source,
        manifest=lambda *_: manifest,
        options=WriteOptions(max_shard_bytes=20_000),
    )
    through_checkpoint(trainer.model, source, out, manifest)
    per_rank = ROWS // trainer.data_size
    mine = slice(trainer.data_rank * per_rank, (trainer.data_rank + 1) * per_rank)
    positions = torch.arange(LENGTH).expand(1, LENGTH)
    micro = [
        Batch(ids=i[None], labels=t[None], positions=positions, documents=None)
        for i, t in zip(ids[mine], labels[mine], strict=True)
    ]
    # A gradient norm that is clipped is still reported whole; the step itself does not matter here.
    norm = trainer.step(micro, LanguageModelling(HEAD_Z))["grad_norm"]
    gradients = all_gradients(trainer, micro)
    if dist.get_rank() != dist.get_world_size() - 1:
        logits = None
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, logits)
    if dist.get_rank() != 0:
        return None
    return figures(source, out / "folder", ids, labels, everyone[-1], gradients, norm)


def through_checkpoint(model, source: Path, out: Path, manifest: Manifest) -> None:
    """Weights to torch_dist, overwritten, read back, and out as a folder."""
    if dist.get_rank() == 0:
        (out / "torch_dist").mkdir()
    dist.barrier()
    save_weights(model, out / "torch_dist")
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(3.0)
    torch_dist.load_weights(model, out / "torch_dist")
    save_folder(model, out / "checkpoint", companions_from=source, manifest=lambda *_: manifest)


def all_logits(model, ids: torch.Tensor) -> torch.Tensor:
    """On the last pipeline rank; what earlier ones return does not matter."""
    from megatron.core import parallel_state

    positions = torch.arange(LENGTH).expand_as(ids)
    with torch.no_grad():
        if not model.pre_process:
            part = LENGTH // parallel_state.get_tensor_model_parallel_world_size()
            hidden = torch.empty(part, ROWS, model.shape.hidden_size)
            dist.recv(hidden, src=parallel_state.get_pipeline_model_parallel_prev_rank())
            model.set_input_tensor(hidden)
        out = model(ids, positions)
        if not model.post_process:
            dist.send(out.contiguous(), dst=parallel_state.get_pipeline_model_parallel_next_rank())
        return out


def all_gradients(trainer: Trainer, micro: list[Batch]) -> dict[str, torch.Tensor]:
    """On rank 0, by folder names: the gradients stand in for the weights on their way into a folder."""
    from functools import partial

    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_bar.models.shards import load_folder, whole_tensors
    from megatron_bar.training.trainer import _forward

    load_folder(trainer.model, Folder.open(trainer.source))
    trainer.ddp.zero_grad_buffer()
    trainer.ddp.force_all_reduce = (
        True  # for what is reduced while the backward pass goes on; the argument is for the rest
    )
    get_forward_backward_func()(
        forward_step_func=partial(_forward, LanguageModelling(HEAD_Z)),
        data_iterator=iter(micro),
        model=[trainer.ddp],
        num_microbatches=len(micro),
        seq_length=LENGTH,
        micro_batch_size=1,
        forward_only=False,
        force_all_reduce=True,
    )
    for param in trainer.model.parameters():
        param.data = param.main_grad.clone()
    return {
        name: tensor.clone()
        for name, tensor in whole_tensors(trainer.model, list(tensor_shapes(trainer.model.shape)), owner=0)
    }


def figures(source: Path, ours: Path, ids, labels, logits, gradients, norm: float) -> dict[str, float]:
    """Worst differences from transformers: logits over max(1, largest), gradients in relative norm, and the
    global norm. ``ours``: the same in a folder of ours, where head and embedding are two."""
    import transformers

    def load(folder: Path):
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )

    with torch.no_grad():
        expected_logits = load(source)(ids).logits
    model = load(ours)
    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    router_logits = []
    for router in routers:  # what classes return as logits are probabilities in some
        router.register_forward_hook(lambda r, x, _: router_logits.append(F.linear(x[0], r.weight)))
    out = model(ids)
    lse = out.logits.logsumexp(-1)
    mask = labels >= 0
    nll = lse - out.logits.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    loss = ((nll + HEAD_Z * lse.square()) * mask).sum() / mask.sum()
    if routers:
        loss = loss + ROUTER_Z * sum(x.logsumexp(-1).square().mean() for x in router_logits) / len(routers)
    loss.backward()
    expected = hf_gradients(model)
    assert expected.keys() == gradients.keys()
    errors = {name: float((gradients[name] - g).norm() / g.norm()) for name, g in expected.items()}
    total = torch.stack([g.double().norm() for g in expected.values()]).norm()
    return {
        "logits": float((logits - expected_logits).abs().max())
        / max(1.0, float(expected_logits.abs().max())),
        "gradient": max(errors.values()),
        "norm": abs(norm / float(total) - 1),
    }


def hf_gradients(model) -> dict[str, torch.Tensor]:
    """By the names on disk: transformers 5 keeps the experts fused in memory."""
    found = {}
    for name, param in model.named_parameters():
        if name.endswith("mlp.experts.gate_up_proj"):
            prefix = name.removesuffix("gate_up_proj")
            for expert, (gate, up) in enumerate(g.chunk(2) for g in param.grad):
                found |= {f"{prefix}{expert}.gate_proj.weight": gate, f"{prefix}{expert}.up_proj.weight": up}
        elif name.endswith("mlp.experts.down_proj"):
            prefix = name.removesuffix("down_proj")
            found |= {f"{prefix}{expert}.down_proj.weight": g for expert, g in enumerate(param.grad)}
        elif "shared_expert" not in name:  # zeros of Qwen2Moe, no tensors of ours
            found[name] = param.grad
    return found


def test_layers_that_do_not_divide_are_refused(tmp_path):
    source = save_hf(tmp_path / "m", **(SHAPE | {"num_hidden_layers": 3}))
    with pytest.raises(BarError, match="3 layers cannot be divided over 2 ranks"):
        ParallelConfig(pipeline=2).check(Folder.open(source).config, 2)
