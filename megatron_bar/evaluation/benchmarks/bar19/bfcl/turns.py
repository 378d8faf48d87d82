"""Conversations of BFCL: what is asked next, and whether the calls of all turns did what the truth's do.

A turn goes on as long as the model calls something; the results come back as messages of the environment.
The calls run on BFCL's own classes, inside the sandbox alone, from the first on each time: nothing is kept
between two questions. With more than 20 steps in a turn the conversation ends, and is wrong unless that turn
was the last. It also ends, and is wrong, when a call took too long or too much.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19.bfcl import prompt
from megatron_bar.evaluation.benchmarks.bar19.bfcl.categories import NOT_MEASURED
from megatron_bar.evaluation.benchmarks.bar19.bfcl.rows import LONG_CONTEXT, unpacked
from megatron_bar.evaluation.benchmarks.benchmark import Grade, Messages
from megatron_bar.verifiers.possible_calls import read
from megatron_bar.verifiers.sandbox import sandbox
from megatron_bar.verifiers.tool_call import Call

WORLD = Path(__file__).with_name("world.py")
STEPS = 20
LIMITS = sandbox.Limits(wall_s=60.0, cpu_s=10, memory_bytes=512 << 20, output_bytes=32 << 20)
STOPPED = "a call took too long or too much"
NEEDS = "needs BFCL's classes in the data (sources), which are cut from the package bfcl-eval"


@dataclass(frozen=True, kw_only=True)
class Reply:
    answer: str
    calls: list[Call]


def ask(row: dict, answers: list[str]) -> Messages | None:
    """Returns the conversation up to what the model is to answer next; None at its end."""
    turns = _turns(row, answers)
    if "sources" not in row or _is_over(row, turns):
        return None
    results, verdict = _run(row, turns)
    if verdict.get("reason") == STOPPED:
        return None  # each further answer would take as long again
    messages = prompt.beginning(row)
    for number, steps in enumerate(turns):
        messages += prompt.turn(row, number) if number else []
        for step in steps:
            messages.append({"role": "assistant", "content": step.answer})
            shown = results.pop(0) if step.calls else []
            messages += [{"role": "environment", "content": result} for result in shown]
    return messages


def grade(row: dict, answers: list[str]) -> Grade:
    if "sources" not in row:
        return Grade(score=0.0, detail={NOT_MEASURED: NEEDS})
    turns = _turns(row, answers)
    wanted = len(row["ground_truth"])
    if len(turns) < wanted:
        why = f"more than {STEPS} steps"
        if len(turns[-1]) <= STEPS:
            why = _run(row, turns)[1].get("reason") or "not asked to its end"
        return Grade(score=0.0, detail={"reason": f"turn {len(turns) - 1}: {why}"})
    _, verdict = _run(row, turns[:wanted], row["ground_truth"])
    return Grade(score=float(verdict["right"]), detail={"reason": verdict["reason"]})


def _turns(row: dict, answers: list[str]) -> list[list[Reply]]:
    """Returns the steps of every turn that was begun; an answer without calls ends its turn."""
    turns: list[list[Reply]] = [[]]
    for answer in answers:
        if _is_over(row, turns):
            break
        calls = read(answer)
        turns[-1].append(Reply(answer=answer, calls=calls))
        if not calls:
            turns.append([])
    return turns


def _is_over(row: dict, turns: list[list[Reply]]) -> bool:
    return len(turns) > len(row["question"]) or len(turns[-1]) > STEPS


def _run(row: dict, turns: list[list[Reply]], truth: list | None = None) -> tuple[list[list[str]], dict]:
    """Returns the results of every step with calls, and the verdict on them, if there is a truth."""
    steps = [[step.calls for step in turn if step.calls] for turn in turns]
    task = {
        "sources": unpacked(row["sources"]),
        "classes": row["involved_classes"],
        "config": row["initial_config"],
        "is_long": row["category"].endswith(LONG_CONTEXT),
        "turns": steps,
    }
    if truth is not None:
        task["truth"] = truth
    elif not any(steps):
        return [], {}
    code = WORLD.read_text(encoding="utf-8")
    outcome = sandbox.run(code, stdin=json.dumps(task).encode(), limits=LIMITS)
    *lines, last = [json.loads(line) for line in outcome.stdout.split(b"\n")[:-1]] or [{}]
    if "right" not in last and (outcome.stopped or outcome.exit_code > 128):
        return [], {"right": False, "reason": STOPPED}
    if "right" not in last:
        why = outcome.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise BarError(f"bfcl {row['id']}: BFCL's classes do not run: {why:.300}")
    return [line["results"] for line in lines], last
