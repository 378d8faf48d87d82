"""One vocabulary for parameters, and what each stage of BAR may move.

Read by the freeze, the merge, the optimizer, the proofs and the tests, so that they cannot disagree.
Names are those of `tensor_shapes`; experts are numbered globally, expert 0 is the anchor.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from megatron_bar.errors import BarError


class ParamGroup(StrEnum):
    EMBEDDING = "embedding"
    LM_HEAD = "lm_head"
    FINAL_NORM = "final_norm"
    ATTENTION = "attention"
    """q, k, v, o projections with their biases, q_norm and k_norm."""
    BLOCK_NORM = "block_norm"
    """The norms before or behind attention and FFN."""
    ROUTER = "router"
    ANCHOR_EXPERT = "anchor_expert"
    DOMAIN_EXPERT = "domain_expert"
    FFN = "ffn"
    """The FFN of a dense model."""


_LAYER = r"model\.layers\.\d+\."
_RULES = (
    (re.compile(r"model\.embed_tokens\.weight"), ParamGroup.EMBEDDING),
    (re.compile(r"lm_head\.weight"), ParamGroup.LM_HEAD),
    (re.compile(r"model\.norm\.weight"), ParamGroup.FINAL_NORM),
    (re.compile(_LAYER + r"self_attn\.([qkvo]_proj|[qk]_norm)\.weight"), ParamGroup.ATTENTION),
    (re.compile(_LAYER + r"self_attn\.[qkv]_proj\.bias"), ParamGroup.ATTENTION),
    (
        re.compile(_LAYER + r"(input|post_attention|post_feedforward)_layernorm\.weight"),
        ParamGroup.BLOCK_NORM,
    ),
    (re.compile(_LAYER + r"mlp\.gate\.weight"), ParamGroup.ROUTER),
    (re.compile(_LAYER + r"mlp\.experts\.0\.(gate|up|down)_proj\.weight"), ParamGroup.ANCHOR_EXPERT),
    (re.compile(_LAYER + r"mlp\.experts\.[1-9]\d*\.(gate|up|down)_proj\.weight"), ParamGroup.DOMAIN_EXPERT),
    (re.compile(_LAYER + r"mlp\.(gate|up|down)_proj\.weight"), ParamGroup.FFN),
)


def classify(name: str) -> ParamGroup:
    """Returns the group of a tensor by its name in this project; an unknown name is an error, never a
    default."""
    for pattern, group in _RULES:
        if pattern.fullmatch(name):
            return group
    raise BarError(f"tensor {name!r} belongs to no parameter group")


_EXPERT = re.compile(r"(.*\.mlp\.experts\.)(\d+)(\..*)")


def expert_index(name: str) -> int | None:
    """Returns the global expert id in a tensor name, or None."""
    match = _EXPERT.fullmatch(name)
    return int(match[2]) if match else None


def with_expert(name: str, index: int) -> str:
    """Returns the name of the same tensor of another expert."""
    match = _EXPERT.fullmatch(name)
    assert match, name
    return f"{match[1]}{index}{match[3]}"


@dataclass(frozen=True, kw_only=True)
class FreezePolicy:
    """What a stage may move; everything else is bit-identical when it ends."""

    name: str
    trains: frozenset[ParamGroup]
    anchor_row_frozen: bool = True
    """Whether row 0 of the router is frozen, which shares a tensor with the trained rows: the one place where
    a mask replaces requires_grad."""

    def trainable(self, name: str) -> bool:
        return classify(name) in self.trains

    def freezes(self, unit: str) -> bool:
        """Returns whether it freezes a unit: a tensor by its name, or a row of a router by `name[row]`."""
        name, _, row = unit.partition("[")
        return not self.trainable(name) or (row == "0]" and self.anchor_row_frozen)


_EXPERT_AND_ROW = frozenset({ParamGroup.DOMAIN_EXPERT, ParamGroup.ROUTER})
_HEADS = frozenset({ParamGroup.EMBEDDING, ParamGroup.LM_HEAD, ParamGroup.FINAL_NORM})
_SHARED = _HEADS | {ParamGroup.ATTENTION, ParamGroup.BLOCK_NORM}

# The published table (arXiv 2604.18473, the table of what trains).
MIDTRAIN = FreezePolicy(name="midtrain", trains=_EXPERT_AND_ROW)
SFT = FreezePolicy(name="sft", trains=_EXPERT_AND_ROW | _HEADS)
RLVR = FreezePolicy(name="rlvr", trains=_EXPERT_AND_ROW | _SHARED)
ROUTE = FreezePolicy(name="route", trains=frozenset({ParamGroup.ROUTER}), anchor_row_frozen=False)
# Where the authors' scripts differ from it (their released training scripts).
SFT_SHARED_FROZEN = FreezePolicy(name="sft_shared_frozen", trains=_EXPERT_AND_ROW)
RLVR_HEAD_FREE = FreezePolicy(name="rlvr_head_free", trains=_EXPERT_AND_ROW | {ParamGroup.LM_HEAD})
RLVR_OPEN = FreezePolicy(
    name="rlvr_open", trains=_EXPERT_AND_ROW | _SHARED | {ParamGroup.ANCHOR_EXPERT}, anchor_row_frozen=False
)
# FlexOlmo's recipe: every stage of an expert trains like its mid-training (arXiv 2507.07024; SFT: see above).
RLVR_SHARED_FROZEN = FreezePolicy(name="rlvr_shared_frozen", trains=_EXPERT_AND_ROW)
# Dense models: pretraining and post-training of the anchor.
DENSE_ALL = FreezePolicy(name="dense_all", trains=_SHARED | {ParamGroup.FFN}, anchor_row_frozen=False)

_ALL = (MIDTRAIN, SFT, RLVR, ROUTE)
_ALL += (SFT_SHARED_FROZEN, RLVR_HEAD_FREE, RLVR_OPEN, RLVR_SHARED_FROZEN, DENSE_ALL)
POLICIES = {policy.name: policy for policy in _ALL}
