"""What a run's steps.json says of each step: what it was made from, and by which choices of the recipe."""

import json

from blake3 import blake3

from megatron_bar.config import diff_json
from megatron_bar.errors import BarError
from megatron_bar.run.folder import RunFolder
from megatron_bar.run.graph import Step
from megatron_bar.weights.manifest import has_manifest, identity
from megatron_bar.weights.whole import write_whole


def read_record(run: RunFolder) -> dict[str, dict]:
    """Returns what is recorded, by the steps' names."""
    path = run.out / "steps.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        remedy = "remove it: then what is there is not checked"
        raise BarError(f"{path}: not readable as JSON ({error}); {remedy}") from None


def write_record(run: RunFolder, step: Step) -> None:
    """Adds what the step is made from now."""
    made = {"needs": _inputs(run, step), "choices": step.choices}
    with run.locks.waiting("steps.json"):
        write_whole(run.out / "steps.json", json.dumps(read_record(run) | {step.name: made}, indent=1))


def compare_with_record(run: RunFolder, step: Step, then: dict, steps: dict[str, Step]) -> None:
    """Raises if a finished step was made from something else than is there; shows which choices differ."""
    before = then["needs"]
    now = _inputs(run, step)
    if before != now:
        other = [name for name in {**before, **now} if before.get(name, "") != now.get(name, "")]
        stale = [name for name in _made_from(step.name, steps) if run.path(name).exists()]
        raise BarError(
            f"{run.path(step.name)} was made from other folders than there are now "
            f"({', '.join(other)} differs); to make it again remove {', '.join(stale)} from {run.out}"
        )
    changes = diff_json(then["choices"], step.choices)
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        shown = "; ".join(changes[:3])
        run.say(f"note: {step.name} stays as it was made, with other choices: {shown}{more}")


def _inputs(run: RunFolder, step: Step) -> dict[str, str | None]:
    """Returns what identifies each need: a folder's receipt, a file's bytes; None for what has neither."""
    inputs: dict[str, str | None] = {}
    for need in step.needs:
        path = run.path(need)
        if path.is_file():
            inputs[need] = blake3(path.read_bytes()).hexdigest()
        else:
            inputs[need] = identity(path) if has_manifest(path) else None
    return inputs


def _made_from(name: str, steps: dict[str, Step]) -> list[str]:
    """Returns ``name`` and every step that needs it, directly or not."""
    names = [name]
    for step in steps.values():
        if set(step.needs) & set(names):
            names.append(step.name)
    return names
