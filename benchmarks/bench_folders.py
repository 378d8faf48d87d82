"""Branch, export and merge of OLMo 2 1B-shaped folders in bfloat16 against `cp` of the same bytes, and their
memory.

Two dense folders (3.0 GB), three two-expert ones (4.6 GB: the branched one and two experts of which every
tensor but the anchor's moved), a torch_dist checkpoint. Each tool is a process of its own, as a user starts
it. `cp` copies as many bytes as the tool writes, to the same disk, and syncs; what the tool reads beyond that
is read by `cat`. Nobody finds a file in memory: inputs are dropped from the page cache before each run. Turns
alternate; ratios are the medians of the pairs'. Peak memory is RssAnon of /proc/PID/status, which a mapped
file does not count in, watched every 10 ms.

    python benchmarks/bench_folders.py [--repeats 3] [--only merge] [--work FOLDER]      (35 GB of disk)
    python benchmarks/bench_folders.py --shape 7B --only branch --repeats 2              (55 GB)
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from side_by_side import figure

from megatron_bar.experts.branch import branch
from megatron_bar.recipes.olmo2_7b import SHAPE
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import ParamGroup, classify
from megatron_bar.weights.hf_config import ModelConfig, num_parameters, tensor_shapes
from megatron_bar.weights.manifest import Manifest, TrainingRecord, read_manifest
from megatron_bar.weights.writer import WriteOptions, write_folder

ROOT = Path(__file__).parent.parent
SEVEN = replace(SHAPE, vocab_size=100_352)
"""With as many rows in the embedding as the released folder has."""
SHAPES = {
    "1B": replace(
        SEVEN, hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=16, num_kv_heads=16
    ),
    "7B": SEVEN,
}
UNVERIFIED = WriteOptions(verify="none")
TOKENIZER = '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []}'


@dataclass(frozen=True)
class Case:
    name: str
    command: tuple[str, ...]
    out: Path
    inputs: tuple[Path, ...]
    read: int
    written: int


def values(name: str, shape: tuple[int, ...], seed: int) -> Iterable[torch.Tensor]:
    """Cheap numbers that differ by tensor and seed, in blocks of rows."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    rows = max(1, (1 << 20) // max(1, torch.Size(shape[1:]).numel()))
    block = torch.randn(min(rows, shape[0]), *shape[1:], generator=generator).mul_(0.02).bfloat16()
    for start in range(0, shape[0], rows):
        yield block[: min(rows, shape[0] - start)]


def dense(out: Path, config: ModelConfig, seed: int, tokenizer: Path) -> Path:
    shapes = tensor_shapes(config)
    manifest = Manifest(family=config.model_type, kind="dense", stage="init")
    produce = lambda name: values(name, shapes[name], seed)  # noqa: E731
    write_folder(
        out, config, produce, companions_from=tokenizer, manifest=lambda *_: manifest, options=UNVERIFIED
    )
    return out


def trained(branched: Path, out: Path, seed: int) -> Path:
    """Returns a folder as RLVR leaves it: all but the anchor's own parameters moved."""
    folder = Folder.open(branched)

    def produce(name: str) -> Iterable[torch.Tensor]:
        group = classify(name)
        if group is ParamGroup.ANCHOR_EXPERT:
            return folder.chunks(name)
        if group is ParamGroup.ROUTER:
            return [folder.read(name) + torch.tensor([[0.0], [0.01 * seed]]).bfloat16()]
        return values(name, folder.tensors[name].shape, seed)

    training = TrainingRecord(stage="rlvr", policy="rlvr")
    manifest = read_manifest(branched).after(training, sources=(), expert=out.name)
    write_folder(
        out,
        folder.config,
        produce,
        companions_from=branched,
        manifest=lambda *_: manifest,
        options=UNVERIFIED,
    )
    return out


def make(work: Path, config: ModelConfig, only: list[str]) -> list[Case]:
    """The cases of ``only`` and their inputs."""
    tokenizer, out, cases = work / "tokenizer", work / "out", []
    tokenizer.mkdir(parents=True)
    (tokenizer / "tokenizer.json").write_text(TOKENIZER)
    anchor, base = (dense(work / f"dense-{seed}", config, seed, tokenizer) for seed in (1, 2))
    two = num_parameters(config.with_experts(2)) * 2
    if "branch" in only:
        given = ("--anchor", str(anchor), "--domain-init", str(base), "--out", str(out))
        cases.append(Case("branch", (tool("branch_expert"), *given), out, (anchor, base), two, two))
    if only == ["branch"]:
        return cases
    branched = branch(anchor, base, work / "branched", router_init="normal", options=UNVERIFIED)[0].path
    experts = [trained(branched, work / f"expert{seed}", seed) for seed in (3, 4)]
    if "export" in only:
        checkpoint = work / "checkpoint"
        run([tool("import_hf"), "--hf", str(experts[0]), "--out", str(checkpoint)])
        given = ("--checkpoint", str(checkpoint), "--out", str(out))
        cases.append(Case("export", (tool("export_hf"), *given), out, (checkpoint,), two, two))
    if "merge" in only:
        # Of the branched folder the domain expert is not read without --verify; the ratios count it for
        # neither.
        ffn = two - num_parameters(config) * 2
        given = (
            "--anchor",
            str(branched),
            *(x for path in experts for x in ("--expert", f"{path.name}={path}")),
            "--out",
            str(out),
        )
        read, written = 3 * two - ffn, two + ffn
        cases.append(Case("merge", (tool("merge_experts"), *given), out, (branched, *experts), read, written))
    return cases


def tool(name: str) -> str:
    return str(ROOT / "tools" / f"{name}.py")


def forget(paths: Iterable[Path]) -> None:
    """Drops the files from the page cache."""
    os.sync()
    for path in paths:
        for file in (f for f in path.rglob("*") if f.is_file()):
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak RssAnon in GB of a Python script."""
    began, peak = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, cwd=ROOT) as child:
        while child.poll() is None:
            try:
                status = Path(f"/proc/{child.pid}/status").read_text()
            except OSError:
                break
            peak = max(
                [peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))]
            )
            time.sleep(0.01)
    assert child.wait() == 0, arguments
    return time.perf_counter() - began, peak * 1024 / 1e9


def copy(case: Case, work: Path) -> float:
    """Seconds of `cp` of the bytes that the tool writes, synced, and of `cat` of what it reads besides."""
    files = [file for path in case.inputs for file in path.rglob("*") if file.is_file()]
    script, left, more, target = [], case.written, case.read - case.written, work / "copies"
    for n, file in enumerate(files):
        have = file.stat().st_size
        take = min(left, have)
        if take == have:
            script.append(f"cp {file} {target}/{n}")
        elif take:
            script.append(f"head -c {take} {file} > {target}/{n}")
        if take < have and more > 0:
            script.append(f"tail -c +{take + 1} {file} | head -c {min(more, have - take)} > /dev/null")
        more -= have - take
        left -= take
    assert left == 0
    target.mkdir()
    began = time.perf_counter()
    subprocess.run(["bash", "-ec", "\n".join([*script, f"sync {target}/*"])], check=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(target)
    return seconds


def measure(case: Case, work: Path, repeats: int) -> None:
    took: dict[str, list[float]] = {"cp": [], "none": [], "weights": []}
    peaks = []
    for _ in range(repeats):
        for turn in took:
            forget(case.inputs)
            if turn == "cp":
                took[turn].append(copy(case, work))
                continue
            seconds, peak = run([*case.command, "--verify", turn])
            took[turn].append(seconds)
            peaks.append(peak)
            shutil.rmtree(case.out)
    seconds = ", ".join(f"{turn} {' '.join(f'{s:.1f}' for s in found)} s" for turn, found in took.items())
    print(
        f"{case.name}: reads {case.read / 1e9:.1f} GB, writes {case.written / 1e9:.1f} GB; {seconds}",
        flush=True,
    )
    for turn, what, target in (("none", "over_cp", 1.5), ("weights", "verified_over_cp", 2.5)):
        ratio = median(ours / theirs for ours, theirs in zip(took[turn], took["cp"], strict=True))
        figure(f"{case.name}_{what}", ratio, target, at_most=True)
    figure(f"{case.name}_peak_anonymous_GB", max(peaks), 3, at_most=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "bench_folders", help="a folder that is made and removed"
    )
    parser.add_argument(
        "--only", nargs="+", choices=("branch", "export", "merge"), default=["branch", "export", "merge"]
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), default="1B", help="of OLMo 2")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    try:
        for case in make(args.work.resolve(), SHAPES[args.shape], args.only):
            measure(case, args.work.resolve(), args.repeats)
    finally:
        shutil.rmtree(args.work, ignore_errors=True)


if __name__ == "__main__":
    main()
