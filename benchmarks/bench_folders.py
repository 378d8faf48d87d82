"""Branch, export and merge of OLMo 2 1B-shaped folders in bfloat16 against `cp` of the same bytes
(beside_cp.py), and their memory.

Two dense folders (3.0 GB), three two-expert ones (4.6 GB: the branched one and two experts of which every
tensor but the anchor's moved), a torch_dist checkpoint. Each tool is a process of its own, as a user starts
it. Ratios are the medians of the pairs'. The sizes above: big_folders.py.

    python benchmarks/bench_folders.py [--repeats 3] [--only merge] [--work FOLDER]      (35 GB of disk)
"""

import argparse
import shutil
from pathlib import Path

from beside_cp import CP, ROOT, Case, run, seconds, take_turns, tool
from made_folders import SHAPES, UNVERIFIED, dense, nbytes, trained
from side_by_side import figure, over

from megatron_bar.experts.branch import branch
from megatron_bar.weights.hf_config import ModelConfig

SHAPE = SHAPES["olmo2_1b"]
TARGETS = {"none": ("over_cp", 1.5), "weights": ("verified_over_cp", 2.0)}
"""What --verify is told -> how the ratio is called, and the most that it may be."""


def make(work: Path, config: ModelConfig, only: list[str]) -> list[Case]:
    """The cases of ``only`` and their inputs."""
    out, cases = work / "out", []
    anchor, base = (dense(work / f"dense-{seed}", config, seed) for seed in (1, 2))
    two = nbytes(config.with_experts(2))
    if "branch" in only:
        command = tool("branch_expert", "--anchor", anchor, "--domain-init", base, "--out", out)
        cases.append(Case("branch", command, (anchor, base), read=two, written=two, out=out))
    if only == ["branch"]:
        return cases
    branched = branch(anchor, base, work / "branched", router_init="normal", options=UNVERIFIED)[0].path
    experts = [trained(branched, work / f"expert{seed}", seed) for seed in (3, 4)]
    if "export" in only:
        checkpoint = work / "checkpoint"
        run(tool("import_hf", "--hf", experts[0], "--out", checkpoint))
        command = tool("export_hf", "--checkpoint", checkpoint, "--out", out)
        cases.append(Case("export", command, (checkpoint,), read=two, written=two, out=out))
    if "merge" in only:
        # Of the branched folder the domain expert is not read without --verify; the ratios count it for
        # neither.
        ffn = two - nbytes(config)
        named = (x for path in experts for x in ("--expert", f"{path.name}={path}"))
        command = tool("merge_experts", "--anchor", branched, *named, "--out", out)
        read, written = 3 * two - ffn, two + ffn
        cases.append(Case("merge", command, (branched, *experts), read=read, written=written, out=out))
    return cases


def measure(case: Case, work: Path, repeats: int) -> None:
    ran = take_turns(case, work, repeats, {verify: ("--verify", verify) for verify in TARGETS})
    moved = f"reads {case.read / 1e9:.1f} GB, writes {case.written / 1e9:.1f} GB"
    print(f"{case.name}: {moved}; {seconds(ran)}", flush=True)
    for verify, (what, target) in TARGETS.items():
        spent, copied = ([run.seconds for run in ran[way]] for way in (verify, CP))
        figure(f"{case.name}_{what}", over(spent, copied), target, at_most=True)
    peak = max(r.peak for verify in TARGETS for r in ran[verify])
    figure(f"{case.name}_peak_anonymous_GB", peak / 1e9, 3, at_most=True)


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
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    try:
        for case in make(args.work.resolve(), SHAPE, args.only):
            measure(case, args.work.resolve(), args.repeats)
    finally:
        shutil.rmtree(args.work, ignore_errors=True)


if __name__ == "__main__":
    main()
