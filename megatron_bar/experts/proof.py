"""The certificate of a stage: compares two folders bit by bit, and checks that only what its freeze policy
allows has changed."""

from dataclasses import dataclass

import torch

from megatron_bar.errors import BarError
from megatron_bar.weights.folder import Folder, Progress, require_same_config, silent
from megatron_bar.weights.groups import FreezePolicy, ParamGroup, classify
from megatron_bar.weights.safetensors_io import tensor_bytes


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    group: ParamGroup
    tensors: int
    changed: int
    """Number of tensors that differ in at least one bit."""
    trains: bool
    """Whether the policy lets the group move. A frozen group has ``changed == 0``, or there would be no
    certificate."""

    @property
    def stuck(self) -> bool:
        """Whether the group should have moved and did not: no error by itself, a learning rate of zero does
        it too."""
        return self.trains and not self.changed


def verify_frozen(
    before: Folder, after: Folder, policy: FreezePolicy, *, strict: bool = False, progress: Progress = silent
) -> list[GroupRow]:
    """Returns one row per group. Raises BarError at the first frozen tensor that changed, and with ``strict``
    where a group is stuck."""
    _check_comparable(before, after, policy)
    tensors = dict.fromkeys(ParamGroup, 0)
    changed = dict.fromkeys(ParamGroup, 0)
    with progress(f"comparing {after.path.name}", after.nbytes) as advance:
        for name, info in after.tensors.items():
            group = classify(name)
            first = _first_changed_row(before, after, name)
            if first is not None and _frozen_row(policy, name, first):
                raise BarError(
                    f"{info.file}: tensor {name!r} is frozen in stage {policy.name}: "
                    f"expected the bits of {before.path}, got a change in row {first}"
                )
            tensors[group] += 1
            changed[group] += first is not None
            advance(info.nbytes)
    rows = [
        GroupRow(group=group, tensors=count, changed=changed[group], trains=group in policy.trains)
        for group, count in tensors.items()
        if count
    ]
    stuck = [row.group for row in rows if row.stuck]
    if strict and stuck:
        groups = ", ".join(stuck)
        raise BarError(
            f"{after.path}: {policy.name} expected a change in every trained group, got none in {groups}"
        )
    return rows


def _check_comparable(before: Folder, after: Folder, policy: FreezePolicy) -> None:
    if before.path.resolve() == after.path.resolve():
        raise BarError(f"{after.path}: expected two folders to compare, got the same one twice")
    require_same_config(before, after)
    unmatched = policy.trains - {classify(name) for name in after.tensors}
    if unmatched:
        groups = ", ".join(sorted(unmatched))
        raise BarError(
            f"{after.path}: stage {policy.name} expected a model with the groups it trains, "
            f"got no tensor of {groups}"
        )


def _frozen_row(policy: FreezePolicy, name: str, first: int) -> bool:
    """Returns whether row ``first`` of the tensor, the first one that changed, should not have: a router's
    row 0 is the anchor's."""
    if not policy.trainable(name):
        return True
    return classify(name) is ParamGroup.ROUTER and policy.anchor_row_frozen and first == 0


def _first_changed_row(before: Folder, after: Folder, name: str) -> int | None:
    """Returns the first row whose bits differ. Bits are compared, not values: NaN equals itself and -0.0 is
    not 0.0."""
    start = 0
    for ours, theirs in zip(before.chunks(name), after.chunks(name), strict=True):
        if tensor_bytes(ours) != tensor_bytes(theirs):
            bits = torch.int32 if ours.element_size() == 4 else torch.int16
            differs = ours.contiguous().view(bits) != theirs.contiguous().view(bits)
            return start + int(differs.reshape(len(ours), -1).any(dim=1).nonzero()[0])
        start += len(ours)
    return None
