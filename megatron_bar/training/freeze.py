"""What trains in a stage: requires_grad=False before DDP and optimizer size their buffers, and proof that it
held.

The router's anchor row is the one place where a mask does it: the row shares its tensor with rows that train
(arXiv 2604.18473). Adam leaves a row with zero gradients and no weight decay bit-identical.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from blake3 import blake3
from torch import Tensor

from megatron_bar.errors import BarError
from megatron_bar.models.build import LanguageModel
from megatron_bar.weights.groups import FreezePolicy, ParamGroup, classify
from megatron_bar.weights.hashes import Units, combine
from megatron_bar.weights.hf_config import ModelConfig, tensor_shapes
from megatron_bar.weights.manifest import Certificate

WHOLE = slice(None)
"""All rows of a parameter."""


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """What a stage must leave alone on this rank."""

    parts: dict[str, tuple[Tensor, slice]]
    """Parameters by folder name, and which of their rows."""

    def marks(self) -> dict[str, int | str]:
        """Returns what shows that a part was written to, by name.

        A whole parameter needs no gradient, so no gradient buffer and no optimizer holds it: torch's count of
        the writes to it says enough, and its bytes are compared once, in the folder that the stage writes
        (`certify`). Rows of a parameter that trains are hashed (BLAKE3).
        """
        return {
            name: param._version if rows == WHOLE else _hash(param.detach()[rows])
            for name, (param, rows) in self.parts.items()
        }


def _hash(rows: Tensor) -> str:
    return blake3(rows.contiguous().view(torch.uint8).cpu().numpy()).hexdigest()


def freeze(model: LanguageModel, policy: FreezePolicy) -> Frozen:
    """Sets requires_grad by ``policy``; that the model has what it trains, `Stage.check` has seen to.

    Call before DDP and the optimizer are built.
    """
    parts: dict[str, tuple[Tensor, slice]] = {}
    for _, param, op in model.parameters_with_ops():
        group = classify(op.names[0])
        param.requires_grad = policy.trainable(op.names[0])
        if not param.requires_grad:
            parts[op.names[0]] = (param, WHOLE)
        elif group is ParamGroup.ROUTER and policy.anchor_row_frozen:
            param.register_hook(_without_anchor_row)
            parts[op.names[0]] = (param, slice(0, 1))
    return Frozen(parts=parts)


def _without_anchor_row(gradient: Tensor) -> Tensor:
    masked = gradient.clone()  # autograd may hand the same tensor to others
    masked[0] = 0
    return masked


def check_unmoved(frozen: Frozen, before: dict[str, int | str]) -> None:
    """Raises with the name of the first frozen tensor that was written to since its marks were ``before``."""
    for name, mark in frozen.marks().items():
        if mark != before[name]:
            what = "hash" if isinstance(mark, str) else "count of writes"
            raise BarError(
                f"frozen tensor {name!r} changed during training: "
                f"expected {what} {before[name]!s:.16}, got {mark!s:.16}"
            )


def certify(policy: FreezePolicy, before: Units, after: Units) -> Certificate:
    """Certifies that a folder has the frozen tensors and router rows of the one it was trained from.

    By hashes, so on any layout; raises with the first that differs.
    """
    # All of the folder, not this rank's part: units are tensors and router rows, and no layout cuts a hash.
    frozen = [unit for unit in before if policy.freezes(unit)]
    for unit in frozen:
        if before[unit] != after[unit]:
            raise BarError(
                f"frozen tensor {unit!r} changed in stage {policy.name}: "
                f"expected hash {before[unit]}, got {after[unit]}"
            )
    return Certificate(policy=policy.name, units=len(frozen), hash=combine(after, policy.freezes))


def table(shape: ModelConfig, policy: FreezePolicy) -> list[tuple[ParamGroup, int, bool]]:
    """Returns (group, parameters in the whole model, trains) for every group of the model."""
    counts = Counter()
    for name, size in tensor_shapes(shape).items():
        counts[classify(name)] += torch.Size(size).numel()
    return [(group, counts[group], group in policy.trains) for group in ParamGroup if group in counts]


class GradientWatch:
    """Notes which trainable parameters receive a gradient, for the first step of a stage.

    A rule can be right and train nothing: a checkpointed block whose input needs no gradient gives none to
    its parameters, while the head still trains and the loss still falls.
    """

    def __init__(self, model: LanguageModel):
        self._seen: set[str] = set()
        trained = {op.names[0]: param for _, param, op in model.parameters_with_ops() if param.requires_grad}
        # Megatron moves a gradient into main_grad and leaves grad empty: only a hook sees it pass.
        self._hooks = {
            name: param.register_hook(lambda _, name=name: self._seen.add(name))
            for name, param in trained.items()
        }

    def check(self) -> None:
        """Raises unless every one of them received a gradient; watches no longer."""
        for hook in self._hooks.values():
            hook.remove()
        for name in self._hooks:
            if name not in self._seen:
                raise BarError(f"trainable parameter {name!r} received no gradient on the first step")
