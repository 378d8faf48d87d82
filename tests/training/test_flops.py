"""The formulas of flops.py against torch's counter on the real models: every policy, forwards and
backwards."""

from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path

import pytest
import torch
from distributed import run_distributed
from folders import save_hf
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_bar.data.packing import NO_LOSS, Batch
from megatron_bar.recipes.olmo2_7b import SHAPE
from megatron_bar.training import flops
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.groups import POLICIES
from megatron_bar.weights.hf_config import tensor_shapes

ROWS, LENGTH = 2, 16
UNLEARNT = 3
"""Tokens at the beginning of each row."""
MOE = [name for name in POLICIES if name != "dense_all"]
OTHERS = {"qwen3": {"head_dim": 12}, "llama": {"head_dim": 12}, "qwen2": {}}
"""Families beside OLMo 2, with heads that are not hidden / heads wide where they have them."""
CASES = [
    ("dense", "dense_all"),
    *product(("two", "five"), MOE),
    *((name, "dense_all") for name in OTHERS),
    *product([f"{name}-two" for name in OTHERS], ("midtrain", "rlvr", "route")),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root, shape = tmp_path_factory.mktemp("sources"), {"vocab_size": 61, "num_hidden_layers": 3}
    made = {
        name: save_hf(root / name, experts=n, **shape) for name, n in (("dense", 0), ("two", 2), ("five", 5))
    }
    for family, heads in OTHERS.items():
        for name, n in ((family, 0), (f"{family}-two", 2)):
            made[name] = save_hf(root / name, family=family, experts=n, **shape | heads)
    return made


def batch(vocabulary: int) -> Batch:
    ids = torch.randint(1, vocabulary, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
    labels = ids[:, 1:].clone()
    labels[:, :UNLEARNT] = NO_LOSS
    return Batch(ids=ids[:, :-1], positions=positions, labels=labels, documents=None)


def counted(sources: dict[str, Path]) -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    """Of every case: what torch counts and what the formulas say, of a pass and of a step."""
    found = {}
    for source, policy in CASES:
        optim = OptimConfig(lr=1e-3)
        stage = Stage(name=policy, policy=policy, optim=optim, sequence=LENGTH, batch=ROWS)
        trainer = Trainer(sources[source], stage, steps=1)
        config = trainer.model.shape
        one, passes = batch(config.vocab_size), {}
        # Torch's plain kernel computes the whole square of the causal attention; a step's own count has half
        # of it.
        pairs = {"tokens": ROWS * LENGTH, "pairs": ROWS * LENGTH**2, "heads": ROWS * (LENGTH - UNLEARNT)}
        forward, backward = flops.forward(config)(**pairs), flops.backward(config, POLICIES[policy])(**pairs)
        works = {
            "forward": (lambda: trainer.token_nll([one], LanguageModelling()), forward),  # noqa: B023
            "step": (lambda: trainer.step([one], LanguageModelling()), forward + backward),  # noqa: B023
        }
        for name, (work, formula) in works.items():
            # The counter knows no flash attention on a CPU: plain products.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                work()
            passes[name] = (counter.get_total_flops(), formula)
        found[source, policy] = passes
    return found


def test_the_formulas_say_what_torch_counts(sources, record_property):
    (found,) = run_distributed(counted, 1, sources)
    assert list(found) == CASES
    apart = {
        (case, name): abs(ours / torchs - 1)
        for case, passes in found.items()
        for name, (torchs, ours) in passes.items()
    }
    worst = max(apart, key=apart.get)
    assert apart[worst] == 0, worst
    record_property(
        "figure",
        f"FLOPs by formula: {len(apart)} passes, at most {100 * apart[worst]:g} % from torch's counter",
    )


def test_published_size():
    """6 N + 12 L H Q T a token (PaLM, appendix B) where all trains, with N the matrices but the
    embedding's."""
    matrices = sum(
        prod(shape) for name, shape in tensor_shapes(SHAPE).items() if len(shape) == 2 and "embed" not in name
    )
    step = flops.forward(SHAPE)(tokens=1, pairs=4096) + flops.backward(SHAPE, POLICIES["dense_all"])(
        tokens=1, pairs=4096
    )
    assert step == 6 * matrices + 12 * 32 * 4096 * 4096


def test_of_fewer_active_experts_each_has_its_share():
    """Half of the experts: half of the FFNs' products, all of everything else."""
    whole = SHAPE.with_experts(4)
    half, ffns = replace(whole, experts_per_token=2), 32 * 4 * 2 * 3 * 4096 * 11008
    assert flops.forward(whole).token - flops.forward(half).token == ffns / 2
    trained = [flops.backward(shape, POLICIES["route"]).token for shape in (whole, half)]
    assert (
        trained[0] - trained[1] == (ffns - 4 * 3 * 2 * 4096 * 11008) / 2
    )  # the first layer's have no backward
