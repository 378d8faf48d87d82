"""What a step reports, looked at: not finite (the trainer has skipped it), or far above what was usual (a spike).

Either is one printed line, and a JSON line with the step, its values and the rows it learnt from. What is not finite enters
no statistics and no log. A spike is only reported: whether to skip one is the reader's choice.
"""

import json
import math
from pathlib import Path
from statistics import median

from megatron_bar.errors import BarError, writing
from megatron_bar.parallel.state import is_rank_zero
from megatron_bar.training.metrics import take_back
from megatron_bar.training.stage import Stage

WINDOW, LEAST = 64, 8
"""Finite steps in the running median, and how many it takes."""


class Guard:
    """Of one stage, from step ``start`` on, reporting to ``path``. ``watched``: the values whose spikes are reported."""

    def __init__(
        self,
        name: str,
        path: Path,
        stage: Stage,
        *,
        start: int,
        saved: dict | None = None,
        watched: tuple[str, ...] = ("loss", "grad_norm"),
    ):
        self.name, self.path, self.stage = name, path, stage
        state = saved or {"in_a_row": 0, "recent": {value: [] for value in watched}}
        self.in_a_row, self.recent = state["in_a_row"], state["recent"]
        if is_rank_zero():
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                take_back(path, start)

    def saved(self) -> dict:
        """As JSON, for a checkpoint."""
        return {"in_a_row": self.in_a_row, "recent": {name: list(values) for name, values in self.recent.items()}}

    def judge(self, step: int, values: dict[str, float], rows: dict[str, list[int]]) -> dict[str, float]:
        """The finite ones of a step's values. Raises once too many steps in a row were skipped."""
        if "skipped" in values:
            self.in_a_row += 1
            wrong = ", ".join(f"{name} {value}" for name, value in values.items() if not math.isfinite(value))
            self._report(step, f"{wrong}: skipped, {self.in_a_row} in a row", values, rows)
            if self.in_a_row == self.stage.max_skipped:
                raise BarError(
                    f"{self.name}: step {step}: {wrong}: expected finite values, got none in {self.in_a_row} steps in a row; "
                    f"the last rows: {_few(rows)}; all are in {self.path}"
                )
            return {name: value for name, value in values.items() if math.isfinite(value)}
        self.in_a_row = 0
        for name, recent in self.recent.items():
            if self.stage.spike and len(recent) >= LEAST and values[name] > self.stage.spike * median(recent) > 0:
                self._report(step, f"a spike: {name} {values[name]:.3g}, median {median(recent):.3g}", values, rows)
            self.recent[name] = [*recent, values[name]][-WINDOW:]
        return values

    def _report(self, step: int, what: str, values: dict[str, float], rows: dict[str, list[int]]) -> None:
        if not is_rank_zero():
            return
        shown = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "what": what, "values": shown, "rows": rows}) + "\n")
        print(f"{self.name}  step {step}: {what}; its rows are in {self.path}", flush=True)


def _few(rows: dict[str, list[int]]) -> str:
    shown = {name: ", ".join(map(str, numbers[:8])) + (", ..." if numbers[8:] else "") for name, numbers in rows.items()}
    return "; ".join(f"{name} {numbers}" for name, numbers in shown.items())
