"""The stages of BAR with their published hyperparameters (arXiv 2604.18473 and its released recipe).

Each function returns a `Stage`; a recipe changes what its model and its machines need by naming it.
"""

from dataclasses import replace

from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage

ROUTER_Z_LOSS = 1e-3
"""In every stage of the experts and the router, divided by the number of layers."""


def midtrain(**changes) -> Stage:
    """50 B tokens of domain text, concatenated and cut; 47,684 steps of 1,048,576 tokens."""
    stage = Stage(
        name="midtrain",
        policy="midtrain",
        optim=OptimConfig(lr=9e-4, schedule="cosine", final_lr_ratio=0.1, warmup=2000),
        sequence=8192,
        batch=128,
        steps=47_684,
        packing="cut",
        router_z_loss=ROUTER_Z_LOSS,
        head_z_loss=1e-5,
    )
    return replace(stage, **changes)


def sft(**changes) -> Stage:
    """Two epochs over all of the general and all of the domain data, documents packed whole, loss on the
    assistant."""
    stage = Stage(
        name="sft",
        policy="sft",
        optim=OptimConfig(lr=1e-4, schedule="linear", warmup=0.03),
        sequence=4096,
        batch=256,
        epochs=2,
        router_z_loss=ROUTER_Z_LOSS,
    )
    return replace(stage, **changes)


def rlvr(**changes) -> Stage:
    """GRPO; everything but the anchor trains. Rollouts and groups are in `GRPOConfig`."""
    stage = Stage(
        name="rlvr",
        policy="rlvr",
        optim=OptimConfig(lr=6e-7),
        sequence=6144,
        batch=128,
        router_z_loss=ROUTER_Z_LOSS,
    )
    return replace(stage, **changes)


def route(**changes) -> Stage:
    """Two epochs over a stratified 5 % of the SFT data; only the routers train."""
    stage = Stage(
        name="route",
        policy="route",
        optim=OptimConfig(lr=1e-4, schedule="linear", warmup=0.03),
        sequence=2048,
        batch=640,
        epochs=2,
        router_z_loss=ROUTER_Z_LOSS,
    )
    return replace(stage, **changes)
