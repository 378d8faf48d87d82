"""lm-eval's own extraction of an answer, by the filters of one of its tasks."""

from collections.abc import Callable
from pathlib import Path

import pytest


def extracted(task: str) -> Callable[[list[str], list[dict]], list[str]]:
    """Returns the filter flexible-extract of ``task``, a file beneath lm-eval's tasks: from answers and
    their rows to what is compared with the gold."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.registry import get_filter
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / task)
    (steps,) = (found["filter"] for found in config["filter_list"] if found["name"] == "flexible-extract")
    first, *rest = ((step["function"], {k: v for k, v in step.items() if k != "function"}) for step in steps)
    assert rest == [("take_first", {})]
    apply = get_filter(first[0])(**first[1]).apply
    return lambda answers, rows: [found[0] for found in apply([[answer] for answer in answers], rows)]
