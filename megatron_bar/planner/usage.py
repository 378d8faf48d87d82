"""Bytes that a recipe's stage takes on the GPU that holds most, computed without a GPU.

Weights, gradients and optimizer state are exact (planner/memory.py). What is kept for the backward pass is
followed operation by operation (planner/activations.py). Temporaries are estimates. The rest, CUDA's context,
NCCL's and cuBLAS's buffers and what the allocator cannot use, is taken off the GPU's memory beforehand
(`Machine.reserve`). Rows are assumed to be full and to hold one document each.
"""

import re
from dataclasses import dataclass, replace

from megatron_bar.conversion.parameters import DTYPES
from megatron_bar.errors import BarError
from megatron_bar.planner.activations import Attention, Pass, activations
from megatron_bar.planner.memory import Place, Spread, States, cache, states
from megatron_bar.recipes.recipe import Training
from megatron_bar.rl.config import GRPOConfig
from megatron_bar.rl.engine import EngineConfig
from megatron_bar.training import flops
from megatron_bar.training.stage import Stage
from megatron_bar.weights.groups import POLICIES, FreezePolicy
from megatron_bar.weights.hf_config import ModelConfig, num_parameters

_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_bytes(text: str, what: str = "memory") -> int:
    """Parses a number and its unit, such as ``80GB`` or ``79.6 GiB``; ``what``: a name for messages."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text.strip())
    if not match or match[2] not in _BYTES:
        raise BarError(
            f"{what} expected as a number and one of {', '.join(_BYTES)}, such as 80GB, got {text!r}"
        )
    return int(float(match[1]) * _BYTES[match[2]])


@dataclass(frozen=True, kw_only=True)
class Machine:
    gpus: int
    memory: int
    """Bytes of one GPU."""
    reserve: int = 4 * 10**9
    """Bytes of these that no tensor of a stage can have: an assumption, not a measurement."""
    node: int = 8
    """Number of GPUs that are linked directly."""
    tflops: float = 989.0
    """Peak of one GPU (H100 SXM in bf16)."""
    mfu: float = 0.4
    """Share of the peak that is reached, over all that is computed, what is recomputed included."""
    link: float = 200e9
    """Bytes per second that a GPU exchanges with the others of its node (NVLink of an H100, of whose 450 GB
    in each direction such exchanges reach less than half): an assumption, as the next."""
    network: float = 40e9
    """Bytes per second that a GPU exchanges with those of other nodes (400 Gbit/s a GPU)."""
    bandwidth: float = 3.35e12
    """Bytes per second of one GPU's memory (H100 SXM)."""
    disk: float = 2e9
    """Bytes per second that a node writes to its disk or reads: an assumption, of one client of a parallel
    file system. The one machine measured reached 0.4e9 (benchmarks/results/nvidia_h200.md)."""

    def __post_init__(self):
        for name in ("gpus", "node", "memory", "tflops", "mfu", "bandwidth", "disk"):
            value = vars(self)[name]
            if not value > 0:
                raise BarError(f"{name} expected above 0, got {value}")
        if self.mfu > 1:
            raise BarError(f"mfu expected at most 1, got {self.mfu}")
        if self.gpus > self.node and self.gpus % self.node:
            raise BarError(f"{self.gpus} GPUs are not whole nodes of {self.node} (--gpus-per-node)")
        if self.reserve >= self.memory:
            memory = f"{self.memory / 1e9:g} GB"
            reserve = f"{self.reserve / 1e9:g} GB"
            raise BarError(f"a GPU of {memory} has nothing left beside the {reserve} in reserve")

    def holds(self, used: "Usage") -> bool:
        """Returns whether ``used`` fits a GPU."""
        return used.total + self.reserve <= self.memory

    @property
    def flops(self) -> float:
        """Operations per second that all GPUs together reach."""
        return self.gpus * self.tflops * 1e12 * self.mfu


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage of a recipe on a model of a shape."""

    name: str
    run: Training
    shape: ModelConfig

    @property
    def stage(self) -> Stage:
        return self.run.stage

    @property
    def policy(self) -> FreezePolicy:
        return POLICIES[self.stage.policy]

    @property
    def rows(self) -> int:
        """Rows of an optimizer step; in RLVR at most so many, one per answer."""
        rl = self.run.rl
        return self.stage.batch if rl is None else -(-rl.prompts * rl.group // rl.mini_batches)

    @property
    def steps(self) -> int | None:
        """Number of optimizer steps; None: as many as the data make."""
        return self.stage.steps if self.run.rl is None else self.run.rl.rounds * self.run.rl.mini_batches

    def step_flops(self, recompute: bool) -> float:
        """Returns the operations of a step."""
        length = self.stage.sequence
        counts = {"tokens": self.rows * length, "pairs": self.rows * length * (length + 1) // 2}
        forward = flops.forward(self.shape)
        backward = flops.backward(self.shape, self.policy)
        return forward(**counts) + backward(**counts) + recompute * forward(**counts, heads=0)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Bytes of one rank: what is there all the time, and the peaks of what comes and goes."""

    weights: int
    gradients: int
    optimizer: int
    start: int
    """A copy of what trains, as the stage began: RLVR that compares with it, and preference optimisation."""
    activations: int
    """Values kept for the backward pass, the loss left out."""
    logits: int
    """Logits, and what the cross-entropy makes of them."""
    working: int
    """Temporaries of the layer at work, and one parameter's gradient."""
    scoring: int
    """Peak while log-probabilities of the start are computed: a second copy of what trains, and a pass that
    trains nothing."""
    sampling: int
    """Peak of RLVR by the trainer itself: the KV cache and the pass over the prompts."""
    engine: int
    """Bytes that another engine takes of the same GPU, all the time."""

    @property
    def total(self) -> int:
        stays = self.weights + self.gradients + self.optimizer + self.start + self.engine
        return stays + max(self.activations + max(self.logits, self.working), self.scoring, self.sampling)


def usage(planned: PlannedStage, stage: Stage, machine: Machine) -> Usage:
    """Returns the usage of the rank that holds most of ``planned`` trained as ``stage``, on all GPUs."""
    spread = Spread.of(planned.shape, stage.parallel, machine.gpus)
    # Activations are equal on all ranks with the same layers and experts; states are not.
    most: dict[tuple[int, int], tuple[States, Place]] = {}
    for place in spread.places():
        key = (place.pipeline, place.expert)
        fixed = states(planned.shape, planned.policy, spread, place)
        if key not in most or fixed.total > most[key][0].total:
            most[key] = fixed, place
    ranks = (_of_rank(planned, stage, machine, spread, fixed, place) for fixed, place in most.values())
    return max(ranks, key=lambda rank: rank.total)


def attention(stage: Stage, shape: ModelConfig) -> Attention:
    """Returns how a GPU attends: torch's kernels for documents take 16 bit."""
    whole = stage.packing == "cut" or stage.attention == "transformer_engine"
    return "kernel" if whole or DTYPES[shape.dtype].itemsize == 2 else "mask"


def _of_rank(
    planned: PlannedStage, stage: Stage, machine: Machine, spread: Spread, fixed: States, place: Place
) -> Usage:
    shape = planned.shape
    run = planned.run
    batch = Pass(
        shape=shape,
        trains=planned.policy.trains,
        spread=spread,
        place=place,
        rows=stage.micro_batch,
        length=stage.sequence,
        attention=attention(stage, shape),
        z_loss=stage.router_z_loss > 0,
    )
    micro_batches = -(-planned.rows // (stage.micro_batch * spread.data))
    passing = activations(batch, recompute=stage.recompute, micro_batches=micro_batches)
    from_start = run.dpo is not None or (run.rl is not None and run.rl.keeps_start)
    return Usage(
        weights=fixed.weights,
        gradients=fixed.gradients,
        optimizer=fixed.optimizer,
        start=fixed.trains if from_start else 0,
        activations=passing.kept,
        logits=passing.logits,
        working=passing.working + fixed.gradient,
        scoring=fixed.trains + max(passing.logits, batch.temporaries()) if from_start else 0,
        sampling=_sampling(run.rl, batch) if run.rl is not None and run.rl.engine.name == "own" else 0,
        engine=_engine(run.rl.engine, shape, machine) if run.rl is not None else 0,
    )


def _sampling(rl: GRPOConfig, batch: Pass) -> int:
    """Returns the bytes of sampling RLVR's answers: keys and values of all slots at the largest length, and
    the first pass, over a prompt in every slot."""
    spread = batch.spread
    length = batch.length
    rows = min(rl.slots, -(-rl.prompts * rl.group // spread.data))
    rows = -(-rows // spread.tensor) * spread.tensor
    prompt = max(1, length - rl.max_new_tokens)
    keys = cache(batch.shape, spread, rows=rows, length=length)
    mask = rows * prompt * prompt * (1 + batch.size)
    return keys + mask + replace(batch, rows=rows, length=prompt).temporaries()


def _engine(engine: EngineConfig, shape: ModelConfig, machine: Machine) -> int:
    """Returns the bytes of an engine's process on rank 0's GPU; with devices of its own it takes nothing
    there."""
    if engine.name == "own" or engine.devices or engine.handover:
        return 0
    return int(engine.memory * machine.memory) if engine.name == "vllm" else folder_bytes(shape)


def folder_bytes(shape: ModelConfig) -> int:
    """Returns the bytes of the tensors of a model's folder."""
    return num_parameters(shape) * DTYPES[shape.dtype].itemsize
