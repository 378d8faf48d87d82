"""The folder tools at the sizes people have, beside `cp` of as many bytes (beside_cp.py): seconds, peak
anonymous memory, disk written. OLMo 2 7B's shape in bfloat16 has 14.6 GB, with two experts 23 GB; the values
come from a formula.

    python benchmarks/big_folders.py --shape olmo2_7b [--only branch extract] [--repeats 3] [--work FOLDER]

branch: two dense folders into two experts. inspect: one dense folder, every value hashed. export: a
two-expert torch_dist checkpoint to a folder. extract: an expert after RLVR (all but the anchor's tensors
moved) to an artifact. replace: the one expert of a merged model by another's artifact after mid-training.
merge: the branched folder and four artifacts after RLVR, five experts.

Each tool runs as a user starts it, verifying what it reads and writes. A step makes its inputs, and removes
them before the next. Where the disk is too small nothing is written. Where it holds no merge of five experts,
as many are merged as it holds, and five of OLMo 2 1B's shape, from which the time is extrapolated by bytes.
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from beside_cp import CP, ROOT, Case, Turns, seconds, take_turns, tool
from made_folders import SHAPES, UNVERIFIED, dense, hollow, nbytes, trained
from side_by_side import figure, over

from megatron_bar.cli import run
from megatron_bar.conversion.convert import import_folder
from megatron_bar.errors import BarError
from megatron_bar.experts.artifact import extract
from megatron_bar.experts.branch import branch
from megatron_bar.experts.merge import merge
from megatron_bar.weights.groups import MIDTRAIN, RLVR, FreezePolicy, ParamGroup
from megatron_bar.weights.hf_config import ModelConfig
from megatron_bar.weights.locks import check_out

MOST = 4
"""Domain experts of the merge: five experts with the anchor."""
SMALLER = {"olmo2_7b": "olmo2_1b"}
"""Where a merge of five is too large for the disk: the shape that it is extrapolated from."""
OVER_CP = 2.0
READS_ONLY = 1.0
"""The most that a tool may take over `cp`, and one that writes nothing, as `cp` does."""
MOST_GB = 3


def branched(work: Path, config: ModelConfig) -> Path:
    """A branched folder, and nothing beside it."""
    inputs = [dense(work / f"dense-{seed}", config, seed) for seed in (1, 2)]
    folder, _ = branch(*inputs, work / "branched", router_init="normal", options=UNVERIFIED)
    for path in inputs:
        shutil.rmtree(path)
    return folder.path


def artifact(base: Path, seed: int, policy: FreezePolicy = RLVR) -> Path:
    """What an expert has that its branch has not."""
    expert = trained(base, base.parent / f"expert-{seed}", seed, policy)
    out = base.parent / f"artifact-{seed}"
    extract(expert, base, out, options=UNVERIFIED)
    shutil.rmtree(expert)
    return out


def branch_case(work: Path, config: ModelConfig) -> Case:
    anchor, base = (dense(work / f"dense-{seed}", config, seed) for seed in (1, 2))
    two, out = nbytes(config.with_experts(2)), work / "out"
    command = tool("branch_expert", "--anchor", anchor, "--domain-init", base, "--out", out)
    return Case("branch", command, (anchor, base), read=two, written=two, out=out)


def inspect_case(work: Path, config: ModelConfig) -> Case:
    folder = dense(work / "dense", config, seed=1)
    return Case("inspect", tool("inspect_model", folder), (folder,), read=nbytes(config), written=0)


def export_case(work: Path, config: ModelConfig) -> Case:
    source, checkpoint, out = branched(work, config), work / "checkpoint", work / "out"
    import_folder(source, checkpoint, verify="none")
    shutil.rmtree(source)
    two = nbytes(config.with_experts(2))
    command = tool("export_hf", "--checkpoint", checkpoint, "--out", out)
    return Case("export", command, (checkpoint,), read=two, written=two, out=out)


def extract_case(work: Path, config: ModelConfig) -> Case:
    base, out = branched(work, config), work / "out"
    expert = trained(base, work / "expert", seed=3)
    hollow(base)  # what is compared are the receipts
    moved = nbytes(config.with_experts(2), RLVR.trainable)
    command = tool("expert", "extract", "--expert", expert, "--anchor", base, "--out", out)
    return Case("extract", command, (expert,), read=moved, written=moved, out=out)


def replace_case(work: Path, config: ModelConfig) -> Case:
    base, model, out = branched(work, config), work / "model", work / "out"
    before = artifact(base, 3, MIDTRAIN)
    merge(base, {"math": before}, model, options=UNVERIFIED)
    hollow(model, ParamGroup.ROUTER)
    shutil.rmtree(before)
    after = artifact(base, 4, MIDTRAIN)
    two = config.with_experts(2)
    command = tool("expert", "replace", "--model", model, "--expert", f"math={after}", "--out", out)
    read = nbytes(two) + nbytes(two, MIDTRAIN.trainable)
    return Case("replace", command, (base, after), read=read, written=nbytes(two), out=out)


def merge_case(work: Path, config: ModelConfig, experts: int) -> Case:
    base, out = branched(work, config), work / "out"
    given = [artifact(base, 3 + n) for n in range(experts)]
    named = (x for path in given for x in ("--expert", f"{path.name}={path}"))
    command = tool("merge_experts", "--anchor", base, *named, "--out", out)
    two = config.with_experts(2)
    read = nbytes(two) + experts * nbytes(two, RLVR.trainable)
    written = nbytes(config.with_experts(1 + experts))
    return Case(f"merge of {1 + experts}", command, (base, *given), read=read, written=written, out=out)


CASES = {
    "branch": branch_case,
    "inspect": inspect_case,
    "export": export_case,
    "extract": extract_case,
    "replace": replace_case,
    "merge": merge_case,
}


@dataclass(frozen=True)
class Job:
    step: str
    shape: str
    experts: int = MOST
    """Domain experts of a merge."""
    stands_for: str | None = None
    """The shape that its time is extrapolated to."""

    @property
    def config(self) -> ModelConfig:
        return SHAPES[self.shape]

    @property
    def need(self) -> int:
        """Bytes of disk that it takes at most at a time."""
        config, more = self.config.with_experts(2), self.experts
        one, two, moved = nbytes(self.config), nbytes(config), nbytes(config, RLVR.trainable)
        branching, ffn = 2 * one + two, two - one
        most = {
            "branch": branching,
            "inspect": 2 * one,
            "export": max(branching, 2 * two),
            "extract": max(branching, 2 * two, two + moved),
            "replace": max(branching, 2 * two + ffn),
            "merge": max(branching, two + more * moved + one + more * ffn),
        }[self.step]
        # A hundredth, and a megabyte, for what is not weights: headers, hashes, the file system's own.
        return most + most // 100 + 10**6

    def make(self, work: Path) -> Case:
        """Makes the inputs in an empty folder."""
        given = (self.experts,) if self.step == "merge" else ()
        return CASES[self.step](work, self.config, *given)


def merges(shape: str, free: int) -> list[Job]:
    """The merge of five; where it does not fit, the largest that does, and five of a smaller shape."""
    if Job("merge", shape).need <= free or shape not in SMALLER:
        return [Job("merge", shape)]
    fewer = (Job("merge", shape, experts) for experts in range(MOST - 1, 0, -1))
    largest = [fits for fits in fewer if fits.need <= free][:1]
    return [*largest, Job("merge", SMALLER[shape], stands_for=shape)]


def jobs_of(step: str, shape: str, free: int) -> list[Job]:
    return merges(shape, free) if step == "merge" else [Job(step, shape)]


def plan(steps: list[str], shape: str, place: Path, free: int, *, keep: bool) -> list[Job]:
    """The jobs of ``steps``; raises BarError unless the disk of ``place`` has ``free`` bytes enough for
    them, one after the other or, where their folders are kept, together."""
    jobs = [each for step in steps for each in jobs_of(step, shape, free)]
    worst = max(jobs, key=lambda j: j.need)
    need = sum(j.need for j in jobs) if keep else worst.need
    if need > free:
        what = f"all that --keep keeps of {shape}" if keep else f"{worst.step} of {worst.shape}"
        fits = [step for step in CASES if all(j.need <= free for j in jobs_of(step, shape, free))]
        would = f"would fit: --only {' '.join(fits)}" if fits else "no step would fit"
        if fits and keep:
            would += " (without --keep)"
        raise BarError(f"{place}: disk expected with {size(need)} free for {what}, got {size(free)}; {would}")
    return jobs


def measure(case: Case, name: str, work: Path, repeats: int) -> Turns:
    """Prints the turns and their figures; ``name``: what the figures' names begin with."""
    ran = take_turns(case, work, repeats, {"tool": ()})
    ours, cp = ran["tool"], ran[CP]
    print(f"  reads {size(case.read)}, writes {size(case.written)}; {seconds(ran)}", flush=True)
    disk = ", ".join(f"{turn} {size(max(r.written for r in runs))}" for turn, runs in ran.items())
    print(f"  written to the disk: {disk}")
    ratios = over([run.seconds for run in ours], [run.seconds for run in cp])
    figure(f"{name}_over_cp", ratios, OVER_CP if case.written else READS_ONLY, at_most=True)
    figure(f"{name}_peak_anonymous_GB", max(r.peak for r in ours) / 1e9, MOST_GB, at_most=True)
    return ran


def size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.3g} GB" if nbytes >= 10**9 else f"{nbytes / 1e6:.3g} MB"


def extrapolated(case: Case, ran: Turns, of: Job) -> str:
    """The line that says what the merge of five would take at the shape that could not be merged."""
    two = SHAPES[of.stands_for].with_experts(2)
    read = nbytes(two) + MOST * nbytes(two, RLVR.trainable)
    factor = (read + nbytes(two.with_experts(1 + MOST))) / (case.read + case.written)
    took = {turn: median(r.seconds for r in runs) * factor for turn, runs in ran.items()}
    need = size(Job("merge", of.stands_for).need)
    return (
        f"  EXTRAPOLATED, not measured: {case.name} at {of.stands_for}, {factor:.2f} times the bytes: "
        f"{took['tool']:.0f} s, cp {took[CP]:.0f} s; it needs {need} of disk"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), required=True)
    about = f"of {', '.join(CASES)} (default all)"
    parser.add_argument(
        "--only", nargs="+", choices=tuple(CASES), default=list(CASES), metavar="STEP", help=about
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of tool and cp (default 3)")
    about = "a new or empty folder on the disk to measure, removed at the end (default runs/big_folders)"
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "big_folders", help=about)
    parser.add_argument("--keep", action="store_true", help="leave the steps' inputs in --work")
    args = parser.parse_args()
    if args.repeats < 1:
        raise BarError(f"--repeats expected at least 1, got {args.repeats}")
    work = args.work.resolve()
    check_out(work)
    there = next(place for place in (work, *work.parents) if place.is_dir())
    steps = list(dict.fromkeys(args.only))
    jobs = plan(steps, args.shape, work, shutil.disk_usage(there).free, keep=args.keep)
    try:
        for each in jobs:
            measure_job(each, work, args.repeats, keep=args.keep)
    finally:
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)


def measure_job(each: Job, work: Path, repeats: int, *, keep: bool) -> None:
    place = work / f"{each.shape}-{each.step}"
    place.mkdir(parents=True)
    case = each.make(place)
    print(f"{case.name} at {each.shape}", flush=True)
    ran = measure(case, f"{each.shape}_{case.name.replace(' ', '_')}", place, repeats)
    if each.stands_for:
        print(extrapolated(case, ran, each), flush=True)
    if not keep:
        shutil.rmtree(place)


if __name__ == "__main__":
    run(main)
