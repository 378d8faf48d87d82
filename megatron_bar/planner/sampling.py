"""Seconds that a round of RLVR samples, computed without a GPU.

A pass over all slots draws a token for each. It reads every weight of its rank but the embedding, and the
keys and values of every slot so far: the bytes over the memory's rate, and a pause at each layer. Where ranks
exchange something inside the model the passes are not recorded as CUDA graphs (models/passes.py), and a
layer's kernels take longer to launch than to run:

    length = prompt + (new + REACH) / 2
    pass = max(layers x PAUSE + (weights + slots x length x keys and values) / (READ x bandwidth),
               layers x LAUNCH where nothing is recorded) + DRAW
    round = ceil(answers / slots) x new x pass + the prompts' operations at the planner's share of the peak

with the answers of one data-parallel rank, and keys up to the next multiple of REACH. Every answer is taken
to be as long as it may be, as the rows of a step are taken to be full. A pipeline's ranks work one after
another, so it saves nothing. The constants are those of benchmarks/results/nvidia_h200.md: own sampler, two
experts of 7B's width, 4 and 8 layers, 16 and 64 slots, extrapolated there to 32 layers. Left out: exchanges
between ranks, the verifiers, the comparison of sampler and trainer, passes for log-probabilities.
"""

from dataclasses import replace

from megatron_bar.conversion.parameters import DTYPES
from megatron_bar.models.passes import REACH
from megatron_bar.planner.memory import Spread, parameters
from megatron_bar.planner.usage import Machine, PlannedStage, folder_bytes
from megatron_bar.training import flops
from megatron_bar.training.stage import Stage
from megatron_bar.weights.hf_config import ModelConfig

READ = 0.87
"""Share of the memory's bandwidth that is reached: a copy on the H200 moved 4.163 TB/s of 4.8."""
PAUSE = 50e-6
"""Seconds of a layer in a recorded pass beyond the bytes: 0.237 ms a layer at 16 slots, of which 0.187 read,
0.316 at 64, of which 0.26."""
LAUNCH = 2.3e-3
"""Seconds in which a host launches a layer's kernels one by one: 20.09 ms a pass of 8 layers, less `DRAW`."""
DRAW = 1.4e-3
"""Seconds of a pass outside the layers and the head: 1.2 ms at 16 slots, 1.6 ms at 64."""


def round_seconds(planned: PlannedStage, stage: Stage, machine: Machine, *, steps: float) -> float:
    """Returns the seconds that a round waits for its answers; 0 outside RLVR. ``steps``: seconds of the
    round's optimizer steps, behind which an engine of its own hides as much where the answers lag.

    An engine of its own has one copy of the model on ``engine.tensor`` GPUs, and gets the weights of every
    round as a folder that one node writes and one reads.
    """
    rl = planned.run.rl
    if rl is None:
        return 0.0
    if rl.engine.name == "own":
        spread = Spread.of(planned.shape, stage.parallel, machine.gpus)
        return answer_seconds(planned, spread, machine, slots=rl.slots, recorded=spread.alone)
    tensor = rl.engine.tensor if rl.engine.name == "vllm" else 1
    spread = Spread(pipeline=1, tensor=tensor, expert=1, expert_tensor=tensor, ranks=tensor)
    beside = replace(machine, gpus=tensor, node=tensor)
    if rl.engine.name == "vllm":
        slots = _fitting(planned, spread, int(rl.engine.memory * machine.memory))
        answers = answer_seconds(planned, spread, beside, slots=slots, recorded=True)
    else:
        answers = answer_seconds(planned, spread, beside, slots=rl.slots, recorded=False)
    handed_over = 2 * folder_bytes(planned.shape) / machine.disk
    return handed_over + (max(0.0, answers - steps) if rl.lag else answers)


def answer_seconds(
    planned: PlannedStage, spread: Spread, machine: Machine, *, slots: int, recorded: bool
) -> float:
    """Returns the seconds of all answers of a round on a model spread over all of ``machine``; ``slots``: on
    each data-parallel rank."""
    rl = planned.run.rl
    prompt = _prompt(planned)
    answers = -(-rl.prompts * rl.group // spread.data)
    slots = min(slots, answers)
    length = prompt + (rl.max_new_tokens + REACH) / 2
    one = token_seconds(planned.shape, spread, machine, slots=slots, length=length, recorded=recorded)
    everyone = rl.prompts * rl.group
    counts = {"tokens": everyone * prompt, "pairs": everyone * prompt * (prompt + 1) // 2, "heads": everyone}
    prompts = flops.forward(planned.shape)(**counts) / machine.flops * spread.pipeline
    return -(-answers // slots) * rl.max_new_tokens * one + prompts


def token_seconds(
    shape: ModelConfig, spread: Spread, machine: Machine, *, slots: int, length: float, recorded: bool
) -> float:
    """Returns the seconds of a pass that draws a token for each of ``slots``, which attend to ``length``
    tokens each."""
    read = weights(shape, spread) + slots * length * key_bytes(shape, spread)
    works = shape.num_layers * PAUSE + read / (READ * machine.bandwidth)
    launches = 0.0 if recorded else shape.num_layers * LAUNCH
    return max(works, launches) + DRAW


def weights(shape: ModelConfig, spread: Spread) -> int:
    """Returns the bytes of weights that a pass reads on the ranks it goes through; of the embedding it reads
    a row for each slot, which is left out."""
    pipelines = range(spread.pipeline)
    parts = [part for rank in pipelines for part in parameters(shape, spread, pipeline=rank, expert=0)]
    values = sum(part.numel for part in parts if not part.name.startswith("embedding."))
    return values * DTYPES[shape.dtype].itemsize


def key_bytes(shape: ModelConfig, spread: Spread) -> int:
    """Returns the bytes of the keys and values of one token, over all layers."""
    heads = shape.num_kv_heads // spread.tensor
    return 2 * shape.num_layers * heads * shape.head_dim * DTYPES[shape.dtype].itemsize


def _prompt(planned: PlannedStage) -> int:
    """Returns the tokens of the longest prompt."""
    return max(1, planned.stage.sequence - planned.run.rl.max_new_tokens)


def _fitting(planned: PlannedStage, spread: Spread, memory: int) -> int:
    """Returns how many answers at their longest an engine has room for in ``memory`` bytes of a GPU."""
    shape = planned.shape
    left = memory - folder_bytes(shape) / spread.tensor
    return max(1, int(left / (planned.stage.sequence * key_bytes(shape, spread))))
