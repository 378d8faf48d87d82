"""Layouts that do not divide are refused by name and number; those that do are exactly the others; groups
come and go."""

import os
import re
from dataclasses import replace

import pytest
import torch.distributed as dist
from distributed import run_distributed
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.errors import BarError
from megatron_bar.parallel.state import (
    ParallelConfig,
    distributed,
    is_rank_zero,
    on_rank_zero,
    padded_vocab_size,
    set_layout,
    share_error,
)
from megatron_bar.weights.hf_config import ModelConfig

DENSE = ModelConfig(
    vocab_size=1003,
    hidden_size=48,
    intermediate_size=80,
    num_layers=6,
    num_heads=12,
    num_kv_heads=4,
    max_positions=32,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
)
FOUR = DENSE.with_experts(4)


@pytest.mark.parametrize(
    "shape, layout, processes, message",
    [
        (replace(DENSE, num_layers=3), {"pipeline": 2}, 2, "3 layers cannot be divided over 2 ranks"),
        (replace(DENSE, num_heads=8), {"tensor": 3}, 3, "8 attention heads cannot be divided over 3 ranks"),
        (DENSE, {"tensor": 8}, 8, "12 attention heads cannot be divided over 8 ranks"),
        (DENSE, {"tensor": 6}, 6, "4 key/value heads cannot be divided over 6 ranks"),
        (
            replace(DENSE, intermediate_size=82),
            {"tensor": 4},
            4,
            "82 FFN columns cannot be divided over 4 ranks",
        ),
        (DENSE.with_experts(5), {"expert": 3}, 3, "80 FFN columns cannot be divided over 3 ranks"),
        (DENSE, {"expert": 2}, 2, "expert parallelism 2 needs experts, and the model is dense"),
        (DENSE, {"tensor": 2}, 3, "tensor 2 x pipeline 1 = 2 does not divide the 3 processes"),
        (DENSE, {"tensor": 2, "pipeline": 3}, 4, "tensor 2 x pipeline 3 = 6 does not divide the 4 processes"),
        (FOUR, {"expert": 4}, 2, "expert 4 x pipeline 1 does not divide the 2 processes"),
        (
            FOUR,
            {"tensor": 2, "expert": 4, "pipeline": 2},
            4,
            "expert 4 x pipeline 2 does not divide the 4 processes",
        ),
    ],
)
def test_what_does_not_divide_is_refused_with_both_numbers(shape, layout, processes, message):
    with pytest.raises(BarError, match=f"^{re.escape(message)}$"):
        ParallelConfig(**layout).check(shape, processes)


SIZE = st.integers(1, 6)


@given(
    shape=st.builds(
        lambda groups, per_group, ffn, layers, experts: replace(
            DENSE.with_experts(experts) if experts else DENSE,
            hidden_size=4 * groups * per_group,
            num_heads=groups * per_group,
            num_kv_heads=groups,
            intermediate_size=ffn,
            num_layers=layers,
        ),
        *(
            st.integers(1, 6),
            st.integers(1, 3),
            st.integers(1, 12),
            st.integers(1, 6),
            st.sampled_from([0, 2, 3, 4, 6]),
        ),
    ),
    tensor=SIZE,
    pipeline=SIZE,
    expert=SIZE,
    processes=st.integers(1, 36),
    fewer=st.integers(0, 2),
)
def test_exactly_what_divides_passes(shape, tensor, pipeline, expert, processes, fewer):
    active = max(shape.num_experts - fewer, min(shape.num_experts, 1))
    shape = replace(shape, experts_per_token=active)
    whole = active < shape.num_experts and shape.num_experts % expert == 0
    cut_ffn = tensor if expert == 1 else 1 if whole else expert
    divides = (
        processes % (tensor * pipeline) == 0
        and processes % ((tensor if expert == 1 else expert) * pipeline) == 0
        and shape.num_heads % tensor == shape.num_kv_heads % tensor == 0
        and shape.intermediate_size % cut_ffn == 0
        and shape.num_layers % pipeline == 0
        and (expert == 1 or shape.num_experts > 0)
    )
    layout = ParallelConfig(tensor=tensor, pipeline=pipeline, expert=expert)
    if divides:
        layout.check(shape, processes)
    else:
        with pytest.raises(BarError, match=r"divide|needs experts"):
            layout.check(shape, processes)


@pytest.mark.parametrize("name", ["tensor", "pipeline", "expert"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", None, True])
def test_a_size_is_a_positive_integer(name, value):
    with pytest.raises(BarError, match=rf"parallel\.{name} must be a positive integer, got {value!r}"):
        ParallelConfig(**{name: value})


@given(st.integers(1, 10**6), st.integers(1, 64), st.sampled_from([1, 64]))
def test_the_padded_vocabulary_is_the_next_that_divides(vocabulary, tensor, unit):
    padded = padded_vocab_size(vocabulary, tensor, unit)
    assert padded % (tensor * unit) == 0 and vocabulary <= padded < vocabulary + tensor * unit


def groups(layout: ParallelConfig, shape: ModelConfig) -> dict[str, int]:
    from megatron.core import parallel_state

    set_layout(ParallelConfig(), DENSE, seed=0)  # another stage's groups, which the next call replaces
    set_layout(layout, shape, seed=0)
    return {
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
        "expert": parallel_state.get_expert_model_parallel_world_size(),
        "expert_tensor": parallel_state.get_expert_tensor_parallel_world_size(),
        "data": parallel_state.get_data_parallel_world_size(),
    }


@pytest.mark.parametrize(
    "layout, active, expert, expert_tensor, data",
    [
        ({}, 4, 1, 1, 2),
        ({"tensor": 2}, 4, 1, 2, 1),
        ({"pipeline": 2}, 4, 1, 1, 1),
        ({"expert": 2}, 4, 1, 2, 2),
        ({"tensor": 2, "expert": 2}, 4, 1, 2, 1),
        ({"expert": 2}, 3, 2, 1, 2),
        ({"tensor": 2, "expert": 2}, 3, 2, 1, 1),
    ],
)
def test_the_groups_are_those_of_the_layout(layout, active, expert, expert_tensor, data):
    wanted = ParallelConfig(**layout)
    sizes = {
        "tensor": wanted.tensor,
        "pipeline": wanted.pipeline,
        "expert": expert,
        "expert_tensor": expert_tensor,
        "data": data,
    }
    assert run_distributed(groups, 2, wanted, replace(FOUR, experts_per_token=active)) == [sizes] * 2


def test_one_process_alone_has_a_group_for_the_block_and_leaves_nothing():
    before = dict(os.environ)
    for _ in range(2):
        with distributed():
            assert (dist.get_rank(), dist.get_world_size()) == (0, 1) and is_rank_zero()
            set_layout(ParallelConfig(), DENSE, seed=0)
            assert on_rank_zero(lambda: 7) == 7
        assert not dist.is_initialized() and is_rank_zero()
    assert dict(os.environ) == before


def told(failing: int, kind: str) -> str:
    """What this rank says when rank ``failing`` had an error."""
    error = (
        {"user": BarError("bad file"), "system": OSError("disk full")}[kind]
        if dist.get_rank() == failing
        else None
    )
    try:
        share_error(error)
    except (BarError, OSError) as problem:
        return f"{type(problem).__name__}: {problem}"
    return "nothing"


def test_an_error_of_one_rank_is_every_ranks():
    assert run_distributed(told, 2, 1, "user") == ["BarError: rank 1: bad file", "BarError: bad file"]
    assert run_distributed(told, 2, 0, "system") == ["OSError: disk full", "BarError: rank 0: disk full"]
    assert run_distributed(told, 2, 9, "user") == ["nothing", "nothing"]


def from_rank_zero() -> list:
    found = [on_rank_zero(lambda: f"made on {dist.get_rank()}")]
    for problem in (BarError("bad file"), OSError("disk full")):

        def fail(problem=problem):
            raise problem

        try:
            on_rank_zero(fail)
        except (BarError, OSError) as error:
            found.append(str(error))
    return found


def test_rank_zeros_work_and_its_failures_reach_every_rank():
    ours, theirs = run_distributed(from_rank_zero, 2)
    assert ours == ["made on 0", "bad file", "disk full"]
    assert theirs == ["made on 0", "rank 0: bad file", "rank 0: disk full"]
