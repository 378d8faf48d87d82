"""The only adaptation of Megatron-Core to a machine without a CUDA device.

Megatron-Core calls ``torch.cuda`` unconditionally in a few dozen places. ``install`` redirects those calls to
the CPU (gloo does the communication); with a CUDA device it does nothing. It must run before anything
allocates through Megatron, so ``megatron_bar.parallel`` calls it when it is imported. Seen working with
megatron-core 0.19.2.
"""

import contextlib
import ctypes
import functools
import gc
import os
import platform
import re
import warnings
from pathlib import Path

import torch
from torch.utils._device import _device_constructors

from megatron_bar.errors import BarError

_CUDA_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.float16: "torch.cuda.HalfTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
}
_tensor_type = torch.Tensor.type


def device() -> torch.device:
    """Returns where tensors live: this process's CUDA device, else the CPU. The one place that asks."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def return_memory() -> None:
    """Gives what was freed back to the system. glibc keeps it, in pieces that the tensors of the next stage
    may not fit into; another C library is left alone."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def device_name() -> str:
    """Returns the name of the GPU or the processor, as it calls itself."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # Linux alone has it
        about = ""
    name = re.search(r"^model name\s*: (.+)$", about, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def backend() -> str:
    """Returns torch.distributed's backend for that device."""
    return backend_of(gpu=torch.cuda.is_available(), nccl=torch.distributed.is_nccl_available())


def backend_of(*, gpu: bool, nccl: bool) -> str:
    """Returns the backend; ``nccl``: whether this torch has it."""
    if gpu and not nccl:
        raise BarError("NCCL: expected in torch where there is a GPU, found none: install torch's CUDA build")
    return "nccl" if gpu else "gloo"


class _NoStream:
    """A CUDA stream or event where work is already synchronous."""

    def __init__(self, *args, **kwargs):
        pass

    def _nothing(self, *args, **kwargs):
        return None

    wait_stream = wait_event = record = wait = synchronize = _nothing

    def record_event(self, *_):
        return self

    def query(self):
        return True


_FACTORIES = (
    *("arange", "empty", "eye", "full", "linspace", "ones", "tensor", "zeros"),
    *("rand", "randint", "randn", "randperm"),
    *("empty_like", "full_like", "ones_like", "zeros_like"),
)


def _on_cpu(factory):
    """Makes ``torch.empty(..., device="cuda")`` and its siblings allocate on the CPU."""

    @functools.wraps(factory)
    def wrapped(*args, **kwargs):
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return wrapped


def cuda_type(tensor, dtype=None, *args, **kwargs):
    """Stands in for ``Tensor.type``: Megatron's optimizers tell dtypes apart by comparing it with the names
    of CUDA types."""
    if dtype is None and tensor.device.type in ("cpu", "meta") and tensor.dtype in _CUDA_TYPE_NAMES:
        return _CUDA_TYPE_NAMES[tensor.dtype]
    return _tensor_type(tensor) if dtype is None else _tensor_type(tensor, dtype, *args, **kwargs)


def _exchange_in_place(buffers) -> None:
    """Replaces the collectives by which ``megatron.core.distributed.param_and_grad_buffer`` moves its buffers
    with ones that gloo does without copies.

    A rank's shard is a view of the buffer, so broadcasts of all shards gather it, and an all-reduce of the
    whole leaves the shard's sum in place. gloo's own gather and reduce-scatter copy the buffer, even where
    one rank has it all and there is nothing to move.
    """
    coalescing = buffers._coalescing_manager
    started = []

    @contextlib.contextmanager
    def together(group, async_ops=False):
        with coalescing(group, async_ops=async_ops) as block:
            yield block
        block.works += started
        started.clear()
        if not async_ops:
            block.wait()

    def gather(buffer, shard, *, group, async_op):
        if group.size() > 1:
            shards = buffer.chunk(group.size())
            started.extend(group.broadcast(part, root) for root, part in enumerate(shards))

    def reduce(shard, buffer, *, op, group, async_op):
        if group.size() > 1:
            started.append(group.allreduce([buffer], op))

    buffers._coalescing_manager = together
    buffers.dist_all_gather_func = gather
    buffers.dist_reduce_scatter_func = reduce


def install() -> None:
    """Redirects ``torch.cuda`` to the CPU; does nothing where CUDA exists or where it was done before."""
    if torch.cuda.is_available() or torch.Tensor.type is cuda_type:
        return
    # Large tensors come from the system, page by page: with huge pages a step takes a tenth less. torch reads
    # it before its first tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    cuda = torch.cuda
    cuda.current_device = lambda: "cpu"
    cuda.set_device = lambda _: None
    cuda.synchronize = lambda *_: None
    cuda.empty_cache = lambda: None
    for module in (cuda, cuda.random):
        module.manual_seed = lambda seed: torch.manual_seed(
            seed
        )  # not itself: torch 2.11's compiler wants one name for it
        module.get_rng_state = lambda *_, **__: torch.get_rng_state()
        module.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    cuda.Stream = cuda.Event = _NoStream
    cuda.current_stream = cuda.default_stream = lambda *_: _NoStream()
    cuda.stream = lambda _: contextlib.nullcontext()
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor
    torch.Tensor.record_stream = lambda *_: None
    torch.Tensor.type = cuda_type
    # `with torch.device(...)` knows the factories by identity; it must have met the real ones, or
    # transformers loads garbage.
    _device_constructors()
    for name in _FACTORIES:  # not a TorchFunctionMode: that would slow down every operation of every step
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    _adapt_megatron()


def _adapt_megatron() -> None:
    """Replaces what Megatron does on a GPU alone; torch must be redirected before it is imported."""
    compile_later = torch.compile
    # Megatron asks for a dozen compiled functions as it is imported, none of which is called on a CPU: torch
    # would load its whole compiler for them.
    torch.compile = lambda function=None, **_: function or (lambda given: given)
    with warnings.catch_warnings():
        # Megatron says of every optional CUDA library that it is not there.
        warnings.simplefilter("ignore")
        import megatron.core.models.gpt  # noqa: F401
        from megatron.core.distributed import param_and_grad_buffer
        from megatron.core.tensor_parallel import random
        from megatron.core.transformer.moe import token_dispatcher
    torch.compile = compile_later

    def to_host(tensor, as_numpy=False, record_stream=False):
        # Megatron skips the conversion for tensors that already are on the host; all_to_all then gets tensors
        # as sizes.
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    token_dispatcher.maybe_move_tensor_to_cpu = to_host
    # Megatron queues the setting of CUDA's generator until CUDA is initialised, which never happens here.
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    _exchange_in_place(param_and_grad_buffer)
