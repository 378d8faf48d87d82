"""A stage so small that hundreds of runs of it can be killed: real folders, real loop, a second each."""

from pathlib import Path

import torch
from distributed import start_process
from folders import files_but_seconds, save_hf

from megatron_bar import cli
from megatron_bar.data.indexed import in_memory
from megatron_bar.data.packing import PackedRows
from megatron_bar.parallel.state import distributed
from megatron_bar.training.fit import Job, fit
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.weights.manifest import Cost, Manifest

STAGE = Stage(
    name="midtrain",
    policy="midtrain",
    optim=OptimConfig(lr=1e-2, schedule="linear"),
    sequence=16,
    batch=2,
    steps=6,
    save_every=1,
)


def make_source(path: Path) -> Path:
    return save_hf(path, experts=2, num_hidden_layers=1)


def rows(name: str = "x") -> PackedRows:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 19, (40, 7), generator=generator).tolist()
    return PackedRows([(name, in_memory([(document, [True] * 7) for document in ids]))], 16, pad_id=0)


def logs(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-logs")


def job(source: Path, folder: Path) -> Job:
    def manifest(*_, source_hash: str, cost: Cost) -> Manifest:
        return Manifest(family="flex_olmo", kind="dense", ledger=(cost,))

    return Job(name="tiny", source=source, out=folder / "out", manifest=manifest, logs=logs(folder))


def train(source: Path, folder: Path, stage: Stage = STAGE) -> None:
    """As a command line runs it: ends the process with a status."""
    torch.set_num_threads(1)

    def main() -> None:
        with distributed():
            fit(job(source, folder), stage, [rows()])

    cli.run(main)


def finish(source: Path, folder: Path, stage: Stage = STAGE) -> tuple[int, str]:
    """Exit status of a run, and what it printed."""
    folder.mkdir(parents=True, exist_ok=True)
    output = folder.with_name(f"{folder.name}-output")
    process = start_process(train, source, folder, stage, output=output)
    process.join()
    return process.exitcode, output.read_text()


def left(folder: Path) -> dict[str, bytes]:
    """What a finished run leaves: every file of the output folder, and the log of its steps. Nothing hidden
    is among it.

    Of what it cost, all but the seconds.
    """
    assert [path.name for path in folder.iterdir()] == ["out"]
    return files_but_seconds(folder / "out") | {"metrics": (logs(folder) / "metrics.jsonl").read_bytes()}
