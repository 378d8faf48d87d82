"""What a step reports, looked at: not finite (the trainer has skipped it), or far above what was usual (a
spike).

Either is one printed line, and a JSON line with the step, its values and the rows it learnt from. What is not
finite enters no statistics and no log. A spike is only reported: whether to skip one is the reader's choice.
"""

import json
import math
from pathlib import Path
from statistics import median

from megatron_bar.errors import BarError, writing
from megatron_bar.parallel.state import is_rank_zero
from megatron_bar.training.metrics import take_back
from megatron_bar.training.stage import Stage

WINDOW = 64
"""Finite steps in the running median."""
LEAST = 8
"""Finite steps that a median takes: before, nothing is a spike."""


class Guard:
    """Watches over one stage from step ``start`` on and reports to ``path``.

    ``watched``: the values whose spikes are reported. ``saved``: what an earlier one left in a checkpoint.
    """

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
        self.name = name
        self.path = path
        self.stage = stage
        state = saved or {"in_a_row": 0, "recent": {value: [] for value in watched}}
        self.in_a_row: int = state["in_a_row"]
        self.recent: dict[str, list[float]] = state["recent"]
        if is_rank_zero():
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                take_back(path, start)

    def saved(self) -> dict:
        """Returns the state as JSON, for a checkpoint."""
        recent = {name: list(values) for name, values in self.recent.items()}
        return {"in_a_row": self.in_a_row, "recent": recent}

    def judge(self, step: int, values: dict[str, float], rows: dict[str, list[int]]) -> dict[str, float]:
        """Returns the finite ones of a step's values; raises once too many steps in a row were skipped."""
        if "skipped" in values:
            self.in_a_row += 1
            wrong = ", ".join(f"{name} {value}" for name, value in values.items() if not math.isfinite(value))
            self._report(step, f"{wrong}: skipped, {self.in_a_row} in a row", values, rows)
            if self.in_a_row == self.stage.max_skipped:
                raise BarError(
                    f"{self.name}: step {step}: {wrong}: expected finite values, "
                    f"got none in {self.in_a_row} steps in a row; "
                    f"the last rows: {_few(rows)}; all are in {self.path}"
                )
            return {name: value for name, value in values.items() if math.isfinite(value)}
        self.in_a_row = 0
        for name, recent in self.recent.items():
            # A median of 0 or below, as of a loss that is no likelihood, is no measure of what is usual.
            if (
                self.stage.spike
                and len(recent) >= LEAST
                and values[name] > self.stage.spike * median(recent) > 0
            ):
                self._report(
                    step, f"a spike: {name} {values[name]:.3g}, median {median(recent):.3g}", values, rows
                )
            self.recent[name] = [*recent, values[name]][-WINDOW:]
        return values

    def _report(self, step: int, event: str, values: dict[str, float], rows: dict[str, list[int]]) -> None:
        if not is_rank_zero():
            return
        # JSON has no NaN.
        shown = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "what": event, "values": shown, "rows": rows}) + "\n")
        print(f"{self.name}  step {step}: {event}; its rows are in {self.path}", flush=True)


def _few(rows: dict[str, list[int]]) -> str:
    parts = []
    for name, numbers in rows.items():
        more = ", ..." if numbers[8:] else ""
        parts.append(f"{name} {', '.join(map(str, numbers[:8]))}{more}")
    return "; ".join(parts)
