"""A run of RLVR whose answers come from an engine apart, to be ended in every way: SOURCE OUT ENGINE-AS-JSON
[FAIL]."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from test_grpo_training import CONFIG, TASKS, Ids, stage

from megatron_bar import cli
from megatron_bar.errors import BarError
from megatron_bar.parallel.state import ParallelConfig, distributed
from megatron_bar.rl import grpo
from megatron_bar.rl.engine import EngineConfig
from megatron_bar.training.fit import Job
from megatron_bar.weights.manifest import Manifest


def main() -> None:
    source, out = map(Path, sys.argv[1:3])
    engine = EngineConfig(**json.loads(sys.argv[3]))
    rounds = 2 if sys.argv[4:] == ["short"] else 500

    def grade(items) -> list[float]:
        print("graded", flush=True)
        if sys.argv[4:] == ["fail"]:
            raise BarError("the grader fails")
        return [float(n % 2) for n, _ in enumerate(items)]

    config = replace(CONFIG, rounds=rounds, engine=engine, max_new_tokens=48, patience=1000)
    wide = replace(
        stage(ParallelConfig()), sequence=64, optim=replace(stage(ParallelConfig()).optim, lr=1e-6)
    )
    manifest = Manifest(family="flex_olmo", kind="dense")
    job = Job(
        name="rlvr", source=source, out=out, manifest=lambda *_, **__: manifest, logs=out.with_name("logs")
    )
    torch.set_num_threads(1)
    with distributed():
        grpo.train(job, wide, config, TASKS, Ids(), grade)


if __name__ == "__main__":
    cli.run(main)
