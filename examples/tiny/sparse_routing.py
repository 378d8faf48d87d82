"""How few active experts does a merged model need? Routers trained in several ways, over seeds; quality
against active FLOPs.

    python examples/tiny/sparse_routing.py   # seeds 2 to 6, and two of them with a larger drift
    python examples/tiny/sparse_routing.py --seeds 2 --drift-seeds --out runs/sparse_one

Run again, it continues. Every run is the recipe `sparse` (recipes/sparse.py), made by examples/reproduce.py
under OUT, whose own report of every score it leaves, too; the summary is written to --results: report.md and
report.json.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_bar import cli

REPRODUCE = Path(__file__).resolve().parent.parent / "reproduce.py"
KEEPS, LOSES = 0.98, 0.01
"""Of the best score with all experts: what two should keep, and what one router for every number may lose
with all."""
TITLES = {
    "published": "Main setting: the experts share what the published SFT frees",
    "large": "Larger drift: everything shared trains in every expert, so the mean of it costs something",
}
ROUTERS = {
    "all": "all 5 (published)",
    "two": "2",
    "two_dense": "2, dense gradient",
    "sampled_dense": "2 to 5 drawn per batch, dense gradient",
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 5, 6], help="default: 2 to 6")
    parser.add_argument(
        "--drift-seeds", type=int, nargs="*", default=[2, 3], help="of the larger drift (default: 2 3)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/sparse"), help="default: runs/sparse")
    parser.add_argument("--results", type=Path, help="folder of the summary (default: OUT)")
    parser.add_argument(
        "--processes", type=int, default=2, help="each takes the next step that nobody works at (default 2)"
    )
    parser.add_argument("--set", dest="changes", nargs="+", action="extend", default=[], metavar="A.B=VALUE")
    return parser.parse_args()


def main() -> None:
    args = parse()
    settings = {"published": args.seeds} | ({"large": args.drift_seeds} if args.drift_seeds else {})
    for drift, seeds in settings.items():
        make(drift, seeds, args)
    from megatron_bar.parallel.state import distributed
    from megatron_bar.weights.whole import write_whole

    results, lines, found = args.results or args.out, ["# Few active experts", ""], {}
    for drift, seeds in settings.items():
        summary = Summary(drift, [args.out / drift / f"seed{seed}" for seed in seeds])
        lines += summary.lines()
        about = summary.found.provenance()
        versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
        lines += [
            f"Seeds {', '.join(map(str, seeds))}; reported {about.date} on {about.machine}; code "
            f"{about.commit}; {versions}.",
            "",
        ]
        found[drift] = summary.numbers
    with distributed():
        lines += sizes(args.out / "published" / f"seed{args.seeds[0]}")
    results.mkdir(parents=True, exist_ok=True)
    write_whole(results / "report.json", json.dumps(found, indent=1) + "\n")
    write_whole(results / "report.md", "\n".join(lines) + "\n")
    print(*lines, sep="\n")


def make(drift: str, seeds: Sequence[int], args: argparse.Namespace) -> None:
    command = [
        sys.executable,
        REPRODUCE,
        "--recipe",
        f"megatron_bar.recipes.sparse:{drift}",
        "--seeds",
        *seeds,
    ]
    command += [
        "--out",
        args.out / drift,
        "--processes",
        args.processes,
        *(["--set", *args.changes] if args.changes else []),
    ]
    done = subprocess.run(list(map(str, command)), check=False)
    if done.returncode:
        sys.exit(done.returncode)


class Summary:
    """Numbers of the runs of one setting, a seed each."""

    def __init__(self, drift: str, runs: list[Path]):
        from megatron_bar.recipes.sparse import ALL, FOUND, at, study
        from megatron_bar.run.collect import RunFiles

        self.drift, self.runs, self.all, self.models, self.at = drift, runs, ALL, FOUND, at
        self.found = RunFiles(study(drift), runs)
        self.best = max(FOUND.values(), key=lambda model: self.mean(at(model, ALL)))
        """The router with the highest mean at all experts."""
        self.numbers: dict = {"seeds": len(runs), "best_at_all": self.best, "scores": {}, "kept": {}}

    def mean(self, model: str) -> float:
        return self.found.mean(self.found.scores(model)).mean

    def score(self, model: str) -> str:
        """In percent, with half the width of its interval."""
        found = self.found.mean(self.found.scores(model))
        self.numbers["scores"][model] = [found.mean, found.low, found.high]
        return f"{100 * found.mean:.1f} ±{50 * (found.high - found.low):.1f}"

    def kept(self, model: str, reference: str):
        """The share of the reference's score: an interval over seeds and items."""
        from megatron_bar.report.bootstrap import ratio_interval

        found = ratio_interval(self.found.scores(model), self.found.scores(reference))
        self.numbers["kept"][f"{model} of {reference}"] = [found.mean, found.low, found.high]
        return found

    def share(self, model: str, reference: str) -> str:
        found = self.kept(model, reference)
        return f"{100 * found.mean:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"

    def flops(self, active: "int | tuple[int, ...]") -> float:
        """Returns the operations of a token's forward pass over those with all experts."""
        from megatron_bar.training.flops import forward
        from megatron_bar.weights.hf_config import read_config

        config = read_config(self.runs[0] / "final")
        few, everything = (forward(config.with_active(k))(tokens=1, pairs=0) for k in (active, self.all))
        return few / everything

    def lines(self) -> Iterator[str]:
        """Markdown."""
        ks = range(1, self.all + 1)
        yield from (f"## {TITLES[self.drift]}", "")
        yield (
            f"Mean exact match of five tests in percent, {len(self.runs)} seeds, 95 % intervals over "
            f"seeds and items."
        )
        yield from (
            "",
            "| experts | router trained at | "
            + " | ".join(f"k = {k}" for k in ks)
            + " | k = 2 of the best k = 5 |",
        )
        yield "|---|---|" + "---:|" * (self.all + 1)
        flops = " | ".join(f"{100 * self.flops(k):.0f} %" for k in ks)
        yield f"| | *FLOPs of a token's forward pass* | {flops} | |"
        for (experts, way), model in self.models.items():
            scores = " | ".join(self.score(self.at(model, k)) for k in ks)
            yield (
                f"| {experts} | {ROUTERS[way]} | {scores} | "
                f"{self.share(self.at(model, 2), self.at(self.best, self.all))} |"
            )
        yield ""
        yield from self.references()
        yield from self.verdicts()

    def references(self) -> Iterator[str]:
        from megatron_bar.data.untagged import DOMAINS
        from megatron_bar.recipes.sparse import LAYERED, UNTRAINED

        single = {d: f"{d}-sft" for d in DOMAINS}
        best = max(single.values(), key=self.mean)
        yield (
            f"- anchor {self.score('anchor')}; the best single expert on all tests, {best}: "
            f"{self.score(best)}"
        )
        for name, end in (("plain", "{}-sft"), ("k-dropout", "{}_alone-sft")):
            own = [self.found.by_skill(self.found.scores(end.format(d)))[d].mean for d in DOMAINS]
            yield (
                f"- each expert on its own domain, {name}, both active: "
                f"{', '.join(f'{100 * s:.1f}' for s in own)}"
            )
        for k in (2, self.all):
            told = ", ".join(f"{kind} {self.score(self.at(f'untrained_{kind}', k))}" for kind in UNTRAINED)
            yield f"- routers that nobody trained, k = {k}: {told}"
        whole = self.at("final", self.all)
        for name, active in LAYERED.items():
            model = f"final@{name}"
            yield (
                f"- the published router without retraining, ({name}) experts by layer, "
                f"{100 * self.flops(active):.0f} % of the "
                f"FLOPs: {self.score(model)}, {self.share(model, whole)} of all 5"
            )
        yield ""

    def verdicts(self) -> Iterator[str]:
        models, everything = self.models, self.at(self.best, self.all)
        two = {model: self.kept(self.at(model, 2), everything).mean for model in models.values()}
        first = max(two, key=two.get)
        yield f"- best at k = 5: {self.best} ({self.score(everything)})"
        holds = "holds" if two[first] >= KEEPS else "does not hold"
        yield (
            f"- k = 2 keeps at least 98 % of it: **{holds}**, {first} keeps "
            f"{self.share(self.at(first, 2), everything)}"
        )
        slider = models["alone", "sampled_dense"], models["plain", "sampled_dense"]
        for model in slider:
            whole = self.at(model, self.all)
            holds = "holds" if self.kept(whole, everything).mean >= 1 - LOSES else "does not hold"
            yield (
                f"- one router for every k loses at most 1 % at k = 5: **{holds}** for {model}, "
                f"{self.share(whole, everything)}"
            )
        if two[first] < KEEPS:
            yield from self.failures()
        for what, before, after in (
            ("training at 2 instead of all", models["plain", "all"], models["plain", "two"]),
            ("the dense gradient, at 2", models["plain", "two"], models["plain", "two_dense"]),
            ("the same over k-dropout experts", models["alone", "two"], models["alone", "two_dense"]),
            ("k-dropout, published router", models["plain", "all"], models["alone", "all"]),
            (
                "k-dropout, router at 2 with a dense gradient",
                models["plain", "two_dense"],
                models["alone", "two_dense"],
            ),
            (
                "drawn numbers instead of 2, dense",
                models["plain", "two_dense"],
                models["plain", "sampled_dense"],
            ),
        ):
            gain = self.found.mean(self.found.gains(self.at(before, 2), self.at(after, 2)))
            self.numbers.setdefault("gains_at_2", {})[what] = [gain.mean, gain.low, gain.high]
            yield f"- at k = 2, {what}: {points(gain)}"
        yield ""

    def failures(self) -> Iterator[str]:
        """Which part of the recipe for two experts does not do what it should, by the numbers of this
        setting."""
        from megatron_bar.recipes.sparse import LAYERED

        whole = self.at("final", self.all)
        kept = {name: self.kept(f"final@{name}", whole).mean for name in LAYERED}
        best = max(kept, key=kept.get)
        layer = LAYERED[best].index(self.all) + 1
        others = ", ".join(f"{100 * share:.1f} %" for name, share in kept.items() if name != best)
        yield (
            f"- where two are too few: in layer {layer}. With all 5 there and 2 elsewhere the published "
            f"router keeps "
            f"{100 * kept[best]:.1f} % of its score at k = 5, with all 5 in another layer {others}"
        )
        for what, (k, before, after) in {
            "k-dropout": (2, self.models["plain", "two_dense"], self.models["alone", "two_dense"]),
            "training at 2 without the dense gradient": (
                2,
                self.models["plain", "all"],
                self.models["plain", "two"],
            ),
            "drawn numbers": (self.all, self.models["plain", "all"], self.models["plain", "sampled_dense"]),
        }.items():
            gain = self.found.mean(self.found.gains(self.at(before, k), self.at(after, k)))
            if gain.high < 0:
                yield f"- failed: {what}, {points(gain)} at k = {k}"


def points(gain) -> str:
    """With its interval."""
    return f"{100 * gain.mean:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def sizes(run: Path) -> Iterator[str]:
    """How large an FFN's output is before its norm: renormalising the weights of 2 experts scales it, and the
    norm undoes that, unless it is near the square root of the norm's epsilon."""
    import torch

    from megatron_bar.evaluation.generative import load_model
    from megatron_bar.parallel.state import ParallelConfig

    model, found = load_model(run / "final", ParallelConfig(), active_experts=2), []
    for layer in model.decoder.layers:
        layer.mlp.register_forward_hook(
            lambda _, __, out: found.append(float(out[0].square().mean(-1).sqrt().min()))
        )
    ids = torch.randint(3, model.shape.vocab_size, (8, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(ids, torch.arange(64).expand(8, 64))
    least, bound = (
        ", ".join(f"{size:.3f}" for size in found),
        f"the square root of the norm's epsilon: {model.shape.rms_norm_eps**0.5:g}",
    )
    yield f"Least root mean square of an FFN's output at k = 2, by layer: {least}; {bound}."


if __name__ == "__main__":
    cli.run(main)
