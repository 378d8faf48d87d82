import os
import signal
import time

import distributed
import psutil
import pytest
import torch
import torch.distributed as dist
from distributed import DistributedError, run_distributed


def reduced(offset):
    tensor = torch.tensor([float(dist.get_rank() + offset)])
    dist.all_reduce(tensor)
    return tensor, dist.get_rank(), dist.get_world_size(), os.getpid()


def megatron_groups():
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    return parallel_state.get_tensor_model_parallel_rank(), torch.get_num_threads()


def rank_one_fails():
    if dist.get_rank() == 1:
        raise ValueError("the reason")
    dist.barrier()


def rank_one_dies():
    if dist.get_rank() == 1:
        os._exit(7)
    dist.barrier()


def rank_one_sleeps():
    if dist.get_rank() == 1:
        time.sleep(600)
    return os.getpid()


def in_a_folder_of_its_own(place):
    (place / str(dist.get_rank())).mkdir()
    return os.getpid()


def test_all_ranks_compute_together_and_processes_are_reused():
    of_four = run_distributed(reduced, 4, 1)
    assert [(t.item(), rank, size) for t, rank, size, _ in of_four] == [(10.0, r, 4) for r in range(4)]
    of_two = run_distributed(reduced, 2, offset=2)
    assert [(t.item(), rank, size) for t, rank, size, _ in of_two] == [(5.0, r, 2) for r in range(2)]
    assert [pid for *_, pid in of_two] == [pid for *_, pid in of_four][:2]
    assert os.getpid() not in [pid for *_, pid in of_four]


def test_every_call_has_megatron_groups_of_its_own():
    for _ in range(2):
        assert run_distributed(megatron_groups, 2) == [(0, 1), (1, 1)]
    with pytest.raises(DistributedError, match="world_size"):
        run_distributed(megatron_groups, 1)


def test_an_error_on_one_rank_fails_the_test_with_its_traceback_and_the_processes_survive():
    pids = [pid for *_, pid in run_distributed(reduced, 2, 0)]
    with pytest.raises(
        DistributedError, match=r"(?s)rank 1 of 2: Traceback.*in rank_one_fails.*ValueError: the reason"
    ):
        run_distributed(rank_one_fails, 2)
    assert [pid for *_, pid in run_distributed(reduced, 2, 0)] == pids


def test_a_dead_process_is_reported_and_replaced():
    with pytest.raises(DistributedError, match="rank 1 of 2: the process ended with exit code 7"):
        run_distributed(rank_one_dies, 2)
    assert run_distributed(reduced, 2, 0)[0][0].item() == 1.0


def test_a_hang_is_bounded_shown_and_leaves_no_process(capfd):
    pids = [pid for *_, pid in run_distributed(reduced, 2, 0)]
    with pytest.raises(DistributedError, match=r"rank 1 of 2 did not finish"):
        run_distributed(rank_one_sleeps, 2, timeout=1)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert run_distributed(reduced, 1, 0)[0][0].item() == 0.0


def test_ranks_that_do_not_connect_are_replaced_and_the_function_runs_once(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "CONNECT_SECONDS", 5)
    pids = [pid for *_, pid in run_distributed(reduced, 2, 0)]
    os.kill(pids[1], signal.SIGSTOP)
    new = run_distributed(in_a_folder_of_its_own, 2, tmp_path)
    assert not set(new) & set(pids) and not any(psutil.pid_exists(pid) for pid in pids)


def test_a_local_function_is_refused():
    with pytest.raises(TypeError, match="define it at module level"):
        run_distributed(lambda: None, 1)
