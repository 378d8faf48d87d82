"""A distributed test is a function run in N gloo processes: ``run_distributed(fn, world_size, *args)``.

Importing torch and Megatron takes ten seconds, so one fork server does it once and the processes are its
forks. They are kept and lent from test to test: a test of N ranks gets the first N of them, in a process
group of its own. The function starts once all are in the group, and a rank leaves it when all have returned
or one has failed: a rank that left earlier would take its sockets from those that still connect. Where gloo
fails to connect the ranks, which is nothing of the test's, they are replaced and connected again. A failing
rank fails the test with its traceback; ranks that hang are shown (stack traces on stderr), killed and
replaced. GPUs are hidden from the processes: several ranks cannot share one under NCCL.
"""

import atexit
import contextlib
import faulthandler
import functools
import gc
import importlib
import io
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import operator
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

PRELOAD = [
    "torch",
    "megatron_bar.training.fit",
    "megatron.core.models.mimo",  # which Megatron imports on its first forward pass
    "pytest",
    "transformers.models.flex_olmo.modeling_flex_olmo",
]
START_SECONDS = 300
CONNECT_SECONDS = 60
CONNECT_ATTEMPTS = 3
GRACE_SECONDS = 10
"""How long the other ranks may go on once one has failed; they usually wait for it in a collective."""


class DistributedError(AssertionError):
    """What went wrong on which rank, tracebacks included."""


def run_distributed(fn: Callable, world_size: int, *args: Any, timeout: float = 300, **kwargs: Any) -> list:
    """``fn(*args, **kwargs)`` on every rank, torch.distributed initialised; the results by rank.

    ``fn`` is a module-level function of a test module; arguments and results are picklable. ``timeout`` is in
    seconds.
    """
    if "<locals>" in fn.__qualname__ or fn.__module__ == "__main__":
        raise TypeError(
            f"{fn.__module__}.{fn.__qualname__} cannot be imported by another process; define it at module "
            f"level"
        )
    return _pool().run(fn, world_size, args, kwargs, timeout)


def start_process(fn: Callable, *args: Any, output: Path) -> multiprocessing.process.BaseProcess:
    """``fn(*args)`` in a process of its own, to be killed: a fork of the fork server, of no group; it prints
    into ``output``."""
    _start_fork_server()
    process = multiprocessing.get_context("forkserver").Process(target=_alone, args=(fn, args, output))
    process.start()
    return process


def close_pool() -> None:
    """Ends the processes; conftest.py calls it when the session is over."""
    _pool().close()


@functools.cache
def _pool() -> "_Pool":
    return _Pool()


@dataclass(frozen=True)
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: multiprocessing.connection.Connection


@dataclass(frozen=True)
class _Task:
    """Told by name, so that a worker imports the test module itself."""

    module: str
    function: str
    args: tuple
    kwargs: dict
    rank: int
    world_size: int
    store: str
    timeout: float
    sys_path: list[str]


class _Pool:
    def __init__(self):
        self.workers: list[_Worker] = []
        self.folder = tempfile.TemporaryDirectory(prefix="run_distributed_")
        self.count = 0
        atexit.register(self.close)  # else multiprocessing's own exit waits for them for ever

    def run(self, fn: Callable, world_size: int, args: tuple, kwargs: dict, timeout: float) -> list:
        name = f"{fn.__module__}.{fn.__qualname__}"
        for attempt in range(1, CONNECT_ATTEMPTS + 1):
            self._start(world_size)
            self.count += 1
            store = str(Path(self.folder.name) / str(self.count))
            for rank, worker in enumerate(self.workers[:world_size]):
                task = _Task(
                    fn.__module__, fn.__qualname__, args, kwargs, rank, world_size, store, timeout, sys.path
                )
                worker.pipe.send_bytes(_pack(task))
            try:
                self._collect(world_size, CONNECT_SECONDS, f"{name}, connecting the ranks")
                break
            except DistributedError:
                self._kill()
                if attempt == CONNECT_ATTEMPTS:
                    raise
        self._release(world_size)
        try:
            return self._collect(world_size, timeout, name)
        finally:
            self._release(world_size)

    def _start(self, world_size: int) -> None:
        if len(self.workers) < world_size:
            _start_fork_server()
        context = multiprocessing.get_context("forkserver")
        new = []
        for _ in range(world_size - len(self.workers)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,))
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            new.append(_Worker(process, ours))
        self.workers += new
        for worker in new:
            if not worker.pipe.poll(START_SECONDS):
                self._kill()
                raise DistributedError(f"a test process did not start within {START_SECONDS} s")
            self._receive(worker)

    def _collect(self, world_size: int, timeout: float, name: str) -> list:
        waiting = {worker.pipe: rank for rank, worker in enumerate(self.workers[:world_size])}
        results, failures = [None] * world_size, []
        deadline = time.monotonic() + timeout
        while waiting:
            ready = multiprocessing.connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                failures += [
                    f"rank {rank} of {world_size} did not finish; stack on stderr"
                    for rank in waiting.values()
                ]
                self._kill(dump=[self.workers[rank] for rank in waiting.values()])
                break
            for pipe in ready:
                rank = waiting.pop(pipe)
                failure, results[rank] = self._receive(self.workers[rank])
                if failure:
                    failures.append(f"rank {rank} of {world_size}: {failure}")
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if failures:
            if any(not worker.process.is_alive() for worker in self.workers):
                self._kill()
            raise DistributedError(
                f"{name}, in the order of failure (limit {timeout:g} s):\n" + "\n".join(failures)
            )
        return results

    def _release(self, world_size: int) -> None:
        """Lets the ranks, if they live, go on: into the function or, after it, out of the group."""
        for worker in self.workers[:world_size]:
            with contextlib.suppress(OSError):  # it has just died, which the next answer tells
                worker.pipe.send_bytes(_pack(None))

    def _receive(self, worker: _Worker) -> tuple[str | None, Any]:
        """A worker's (failure, result)."""
        try:
            return _unpack(worker.pipe.recv_bytes())
        except EOFError:
            worker.process.join()
            return f"the process ended with exit code {worker.process.exitcode}", None

    def _kill(self, dump: list[_Worker] = ()) -> None:
        for worker in dump:
            os.kill(worker.process.pid, signal.SIGUSR1)
        if dump:
            time.sleep(1)  # for the stacks to be written
        for worker in self.workers:
            if worker.process.is_alive():
                for process in [*psutil.Process(worker.process.pid).children(recursive=True), worker.process]:
                    process.kill()
            worker.process.join()
            worker.pipe.close()
        self.workers = []

    def close(self) -> None:
        self._kill()
        self.folder.cleanup()


def _pack(message: Any) -> bytes:
    """Not plain pickle: once Megatron is imported, a tensor's pickle makes whoever reads it import Megatron
    too."""
    import torch

    buffer = io.BytesIO()
    torch.save(message, buffer)
    return buffer.getvalue()


def _unpack(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), weights_only=False)  # from our own process


def _start_fork_server() -> None:
    """Starts it unless it runs, with an environment that torch reads on import and paths that the preload
    needs."""
    tests = Path(__file__).parent
    wanted = {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ |= wanted
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    multiprocessing.forkserver.ensure_running()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def _alone(fn: Callable, args: tuple, output: Path) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import megatron_bar.parallel  # noqa: F401  adapts Megatron-Core to the CPU

    fn(*args)


def _work(pipe: multiprocessing.connection.Connection) -> None:
    """Main of a test process: runs tasks until the pipe closes."""
    faulthandler.register(signal.SIGUSR1)
    import torch

    import megatron_bar.parallel  # noqa: F401  adapts Megatron-Core to the CPU

    torch.set_num_threads(1)
    gc.freeze()  # what the fork server imported need not be searched again after every test
    pipe.send_bytes(_pack((None, None)))
    with contextlib.suppress(EOFError):
        while True:
            _run_task(_unpack(pipe.recv_bytes()), pipe)


def _run_task(task: _Task, pipe: multiprocessing.connection.Connection) -> None:
    """Answers twice: once it is in the group, and with what the function returns; goes on when the test's
    process says so."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    sys.path[:] = task.sys_path
    ranks = {"RANK": str(task.rank), "LOCAL_RANK": str(task.rank), "WORLD_SIZE": str(task.world_size)}
    os.environ |= ranks
    torch.manual_seed(0)

    def connect() -> None:
        store = dist.FileStore(task.store, task.world_size)
        limit = timedelta(seconds=max(task.timeout, CONNECT_SECONDS))
        dist.init_process_group(
            "gloo", store=store, rank=task.rank, world_size=task.world_size, timeout=limit
        )

    def run() -> Any:
        fn = operator.attrgetter(task.function)(importlib.import_module(task.module))
        return fn(*task.args, **task.kwargs)

    def leave() -> None:
        parallel_state.destroy_model_parallel()
        if dist.is_initialized():
            dist.destroy_process_group()

    for step in (connect, run):
        try:
            answer = _pack((None, step()))
        except BaseException:
            answer = _pack((traceback.format_exc(), None))
            leave()  # at once, so that the others fail too and need not be waited for
        pipe.send_bytes(answer)
        pipe.recv_bytes()
    leave()
    for name in ranks:
        del os.environ[name]
    gc.collect()
