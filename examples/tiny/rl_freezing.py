"""Was the reward curve flat because the shared parameters were frozen? The same RLVR from the same SFT
expert, four ways.

The article says that with all shared parameters frozen "the reward curve was completely flat" and frees them;
its plotted run predates the repair of a bug by which frozen early layers cost the others their gradients.
Here every trainable tensor is known to receive one (the trainer stops otherwise), and only what trains
differs. Run it after `make demo`:

    python examples/tiny/rl_freezing.py --source runs/tiny --out runs/rl_freezing
    torchrun --standalone --nproc-per-node 2 examples/tiny/rl_freezing.py --source runs/tiny --out runs/rl

Writes curves.json, curves.svg and result.md; what is in curves.json already is not run again.
"""

import argparse
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

from megatron_bar import cli

WAYS = {
    "shared frozen": "midtrain",
    "shared frozen, head free": "rlvr_head_free",
    "as published": "rlvr",
    "everything open": "rlvr_open",
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", type=Path, default=Path("runs/tiny"), help="a finished tiny run (default runs/tiny)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/rl_freezing"))
    parser.add_argument("--rounds", type=int, default=30, help="rollout batches (default 30)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=float, default=3e-4, help="default 3e-4")
    return parser.parse_args()


def main() -> None:
    args = parse()
    from megatron_bar.parallel.state import distributed, is_rank_zero, on_rank_zero

    curves_file = args.out / "curves.json"
    with distributed():
        curves = on_rank_zero(lambda: json.loads(curves_file.read_text()) if curves_file.is_file() else {})
        for way, policy in WAYS.items():
            for seed in args.seeds:
                key = f"{way}, seed {seed}, {args.rounds} rounds, lr {args.lr:g}"
                if key not in curves:
                    curves[key] = one(args, policy, seed)
                    on_rank_zero(partial(write, curves_file, json.dumps(curves, indent=1)))
        if is_rank_zero():
            report(args, curves)


def one(args, policy: str, seed: int) -> list[float]:
    """The mean reward of every round."""
    from megatron_bar.data.chat import ChatFormat
    from megatron_bar.data.tokenizer import load_tokenizer
    from megatron_bar.parallel.state import is_rank_zero, on_rank_zero
    from megatron_bar.recipes import tiny
    from megatron_bar.rl import grpo
    from megatron_bar.run.data import tasks_of
    from megatron_bar.run.folder import RunFolder
    from megatron_bar.training.fit import Job
    from megatron_bar.verifiers import verify_many

    recipe = tiny.recipe()
    run = next(run for run in recipe.experts[0].runs if run.rl is not None)
    stage = replace(
        run.stage, policy=policy, seed=seed, save_every=0, optim=replace(run.stage.optim, lr=args.lr)
    )
    # No prompt is retired: every way sees the same ones, and the curve is of the whole set.
    config = replace(run.rl, rounds=args.rounds, solved=2.0, kl_every=0)
    source, work = args.source / "math-sft", args.out / ".work"
    chats = ChatFormat(load_tokenizer(source), recipe.chat_template)
    tasks = tasks_of(RunFolder(recipe, args.source, print), replace(run, stage=stage, rl=config), chats)
    on_rank_zero(lambda: shutil.rmtree(work, ignore_errors=True))
    job = Job(
        name=f"{policy} seed {seed}",
        source=source,
        out=work / "model",
        manifest=partial(manifest, source),
        logs=work / "logs",
    )
    on_rank_zero(lambda: work.mkdir(parents=True))
    grpo.train(job, stage, config, tasks, chats, verify_many)
    lines = on_rank_zero(lambda: (work / "logs/metrics.jsonl").read_text().splitlines())
    if is_rank_zero():
        shutil.rmtree(work)
    return [json.loads(line)["reward"] for line in lines]


def manifest(source: Path, written, units, source_hash: str, cost):
    from megatron_bar.weights.manifest import TrainingRecord, read_manifest

    return read_manifest(source).after(
        TrainingRecord(stage="rlvr", recipe="rl_freezing"), sources=(), expert="math", cost=cost
    )


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def report(args, curves: dict[str, list[float]]) -> None:
    from megatron_bar.report.plot import line_chart

    ending = f", {args.rounds} rounds, lr {args.lr:g}"
    runs = {way: [curves[f"{way}, seed {seed}{ending}"] for seed in args.seeds] for way in WAYS}
    title = f"RLVR from the math expert's SFT{ending}, {len(args.seeds)} seeds"
    write(args.out / "curves.svg", line_chart(runs, title=title, x="round", y="mean reward"))
    tail = max(1, args.rounds // 6)
    lines = [
        f"Mean reward of the first and the last {tail} of {args.rounds} rounds, lr {args.lr:g}; every seed, "
        f"then the mean rise.",
        "",
        "| what trains | first | last | rise of each seed | mean rise |",
        "| --- | --- | --- | --- | --- |",
    ]
    rises = {}
    for way, found in runs.items():
        first, last = ([fmean(run[part]) for run in found] for part in (slice(0, tail), slice(-tail, None)))
        each = [b - a for a, b in zip(first, last, strict=True)]
        rises[way] = each
        shown = [" ".join(f"{value:.3f}" for value in values) for values in (first, last)]
        rise = " ".join(f"{value:+.3f}" for value in each)
        lines.append(f"| {way} | {shown[0]} | {shown[1]} | {rise} | {fmean(each):+.3f} |")
    frozen, published = rises["shared frozen"], rises["as published"]
    verdict = (
        "is NOT flat"
        if min(frozen) > 0.05
        else "is flat"
        if max(frozen) < 0.02
        else "is neither flat nor clearly rising"
    )
    lines += [
        "",
        f"With all shared parameters frozen the reward curve {verdict} in this toy: each seed rises by "
        f"{min(frozen):+.3f} to "
        f"{max(frozen):+.3f}; with the published unfreezing by {min(published):+.3f} to "
        f"{max(published):+.3f}.",
        "",
    ]
    write(args.out / "result.md", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    cli.run(main)
