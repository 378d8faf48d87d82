"""A Hugging Face folder straight into tensor, pipeline and expert shards, and out of them again.

Each rank reads only the rows it holds; nothing is gathered to load. To save, the files are planned from the
config alone, so the same model gives the same bytes at every layout; file k belongs to rank k modulo the
number of ranks, and the ranks that hold a tensor's parts send them to its file's owner. No rank number
appears in a file.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_bar.conversion.ops import WeightOp
from megatron_bar.errors import BarError
from megatron_bar.models.build import LanguageModel
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import gather_objects, on_rank_zero, share_error
from megatron_bar.weights import writer
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import expert_index
from megatron_bar.weights.hashes import Units
from megatron_bar.weights.hf_config import ModelConfig, num_parameters, tensor_shapes
from megatron_bar.weights.locks import lock_output
from megatron_bar.weights.manifest import Manifest
from megatron_bar.weights.safetensors_io import ITEMSIZE


def tensor_place(op: WeightOp) -> tuple[int, int]:
    """Returns this rank's number among those that ``op``'s kind of parameter is cut over, and how many."""
    if expert_index(op.names[0]) is None:
        return (
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_tensor_model_parallel_world_size(),
        )
    return (
        parallel_state.get_expert_tensor_parallel_rank(),
        parallel_state.get_expert_tensor_parallel_world_size(),
    )


def place(op: WeightOp) -> tuple[int, int, int]:
    """Returns this rank's number among those that share ``op``'s tensors, how many they are, and which
    replica it is."""
    rank, size = tensor_place(op)
    if expert_index(op.names[0]) is None:
        replica = parallel_state.get_data_parallel_rank()
    else:
        replica = parallel_state.get_expert_data_parallel_rank()
    # What is not cut lies whole on every rank of the group: those are replicas too.
    return (rank, size, replica) if op.sharded else (0, 1, replica * size + rank)


def load_folder(model: LanguageModel, folder: Folder) -> None:
    """Fills this rank's parameters from ``folder``; raises where no rank uses a tensor of it. Collective."""
    if folder.config != model.shape:
        raise BarError(f"{folder.path}: its config.json differs from the model it is loaded into")
    used = set()
    with torch.no_grad():
        for name, param, op in model.parameters_with_ops():
            rank, size, _ = place(op)
            part = op.cut(folder.slice, rank, size)  # reads the rows of this rank alone
            assert part.shape == param.shape, (name, part.shape, param.shape)
            param.copy_(part)
            used.update(op.names)
    unused = set(tensor_shapes(folder.config)) - set().union(*gather_objects(used))
    if unused:
        raise BarError(f"{folder.path}: no rank uses tensor {min(unused)} ({len(unused)} such)")


def _holders(
    model: LanguageModel,
) -> dict[tuple[str, ...], tuple[WeightOp, list[tuple[int, tuple[int, ...]]]]]:
    """By a parameter's folder names: its operation, and (rank, shape) of its parts in order. Collective."""
    mine = {}
    for _, param, op in model.parameters_with_ops():
        rank, _, replica = place(op)
        if replica == 0:  # of those that hold the same, one sends
            mine[op.names] = (op, rank, tuple(param.shape))
    holders: dict = {}
    for global_rank, theirs in enumerate(gather_objects(mine)):
        for names, (op, rank, shape) in theirs.items():
            holders.setdefault(names, (op, {}))[1][rank] = (global_rank, shape)
    return {names: (op, [parts[rank] for rank in sorted(parts)]) for names, (op, parts) in holders.items()}


def whole_tensors(model: LanguageModel, names: list[str], owner: int) -> Iterator[tuple[str, Tensor]]:
    """Sends this rank's parts of the tensors ``names`` to rank ``owner``; yields (name, whole tensor on the
    CPU) there, and nothing elsewhere. Collective: every rank goes through all of it."""
    mine = {op.names: param for _, param, op in model.parameters_with_ops()}
    holders = _holders(model)
    # One parameter may hold several tensors (gate and up, q and k and v): each is moved once.
    unit_of = {name: names for names in holders for name in names}
    for unit in dict.fromkeys(unit_of[name] for name in names):
        op, senders = holders[unit]
        dtype = model.config.params_dtype
        parts = [_move(mine.get(unit), shape, dtype, sender, owner) for sender, shape in senders]
        if dist.get_rank() == owner:
            yield from (
                (name, tensor.contiguous()) for name, tensor in op.join(parts).items() if name in names
            )


def save_folder(
    model: LanguageModel,
    out: Path,
    *,
    companions_from: Path,
    manifest: Callable[[Folder, Units], Manifest],
    config: ModelConfig | None = None,
    options: writer.WriteOptions = writer.USUAL,
) -> None:
    """Writes the model as a Hugging Face folder that appears when it is whole; verified, it was read back.
    Collective.

    ``config``: what the folder says of it, if its active experts are to be others than the model was built
    with. An owner holds one tensor at a time. When a rank fails, every rank raises and nothing is left.
    """
    config = config or model.shape
    plan = writer.plan_shards(config, config.dtype, options.max_shard_bytes)
    nbytes = num_parameters(config) * ITEMSIZE[config.dtype]
    lock = None

    def begin() -> Path:
        nonlocal lock
        lock = lock_output(out, nbytes)
        return lock.path

    # The lock lives on rank 0; the others know the hidden folder that it reserves, to write their files into.
    folder = on_rank_zero(begin)
    try:
        units = _write_shards(model, folder, config, plan)
        rest = {"config": config, "plan": plan, "companions_from": companions_from, "manifest": manifest}

        def finish() -> None:
            writer.finish(lock, **rest, units=units, options=options)

        on_rank_zero(finish)
    except BaseException:
        if lock is not None:
            lock.abort()
        raise


def _write_shards(model: LanguageModel, folder: Path, config: ModelConfig, plan: writer.Plan) -> Units:
    """Writes all files and returns the hashes of all tensors; every rank raises when one cannot write."""
    units = {}
    error = None
    for k, names in enumerate(plan):
        owner = k % dist.get_world_size()
        stream = whole_tensors(model, names, owner)
        if dist.get_rank() == owner and error is None:
            blocks = ((name, [tensor]) for name, tensor in stream)
            try:
                units |= writer.write_shard(folder, config, plan, k, blocks)
            except (BarError, OSError) as problem:
                error = problem
        for _ in stream:  # sends, and takes what a failed write left: the senders wait for it
            pass
    share_error(error)
    return {name: digest for theirs in gather_objects(units) for name, digest in theirs.items()}


def _move(
    param: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, sender: int, owner: int
) -> Tensor | None:
    """``sender``'s part on ``owner``'s CPU, None elsewhere. As bytes: not every backend sends bfloat16."""
    me = dist.get_rank()
    if me == sender == owner:
        return param.detach().cpu()
    if me == sender:
        dist.send(param.detach().contiguous().view(torch.uint8), dst=owner)
    elif me == owner:
        part = torch.empty(shape, dtype=dtype, device=cpu.device())
        dist.recv(part.view(torch.uint8), src=sender)
        return part.cpu()
    return None
