"""From the files that one or more runs of a recipe left to the report's numbers; a run is a seed. Nothing is
measured here."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np

from megatron_bar import __version__
from megatron_bar.config import from_json
from megatron_bar.errors import BarError
from megatron_bar.evaluation.cost import Growth, growth, price, read_bill, read_ledger, retraining
from megatron_bar.evaluation.results import read_results, require_same_tests
from megatron_bar.parallel import cpu
from megatron_bar.recipes.recipe import ExpertSpec, Recipe
from megatron_bar.recipes.study import PUBLISHED, Claim, Sweep, Upgrade
from megatron_bar.report import report as shown
from megatron_bar.report import wording
from megatron_bar.report.bootstrap import mean_interval, overall_interval
from megatron_bar.report.report import Estimate, Report
from megatron_bar.weights.manifest import Cost

POINTS = 80
"""Points of a curve in the report."""
PACKAGES = ("megatron-core", "torch", "transformers", "numpy")
Scores = dict[str, np.ndarray]
"""Test -> the score of every item."""
HOLDS: dict[str, Callable[[Estimate, float], bool]] = {
    "higher": lambda score, margin: score.low > margin,
    "lower": lambda score, margin: score.high < -margin,
    "not lower": lambda score, margin: score.mean >= -margin,
    "same": lambda score, margin: abs(score.mean) <= margin,
}


def evaluation_of(model: str) -> str:
    """The file of a model's answers and scores, under the run's folder."""
    return f"evaluation/{model}.json"


def divergence_of(upgrade: Upgrade) -> str:
    """The file of how far an upgrade moved the other skills' answers."""
    return f"upgrades/{upgrade.before}--{upgrade.after}.json"


def collect(recipe: Recipe, runs: Sequence[Path]) -> Report:
    """The report of ``runs``, one folder per seed, all of ``recipe`` but for its seed; all must be
    finished."""
    files = RunFiles(recipe, [Path(run) for run in runs])
    study = recipe.study
    return Report(
        title=f"The recipe {recipe.name}",
        provenance=files.provenance(),
        rows=tuple(files.rows()),
        comparisons=tuple(files.comparison(upgrade) for upgrade in study.upgrades),
        sweeps=tuple(files.sweep(sweep) for sweep in study.sweeps),
        curves=tuple(files.curves()),
        routing=files.routing(),
        lens=files.lens(),
        costs=tuple(files.costs()),
        claims=(*(files.verdict(claim) for claim in study.claims), *files.cost_claims()),
    )


class RunFiles:
    """The files that the runs left, as numbers of the report."""

    def __init__(self, recipe: Recipe, runs: list[Path]):
        self.recipe = recipe
        self.runs = runs
        self._read: dict[str, list[dict]] = {}

    def results(self, model: str) -> list[dict]:
        """Returns the results of every run."""
        if model not in self._read:
            self._read[model] = [self._measured(run / evaluation_of(model), model) for run in self.runs]
        return self._read[model]

    def _measured(self, path: Path, model: str) -> dict:
        """Returns the results in ``path``; raises BarError if a test of the model is not among them."""
        found = read_results(path)
        for test in self.recipe.evaluation.tests_of(model):
            if test.name not in found["scores"]:
                raise BarError(
                    f"{path}: expected results of {test.name}, by which the recipe measures {model}, found "
                    f"those of {', '.join(found['scores'])}; to measure it again remove the file"
                )
        return found

    def scores(self, model: str) -> list[Scores]:
        return [
            {test: np.array([item["score"] for item in items]) for test, items in result["scores"].items()}
            for result in self.results(model)
        ]

    def gains(self, before: str, after: str) -> list[Scores]:
        """Returns the gains of every run, item by item, on the tests that both were measured by."""
        only = self.recipe.evaluation.only
        for old, new in zip(self.results(before), self.results(after), strict=True):
            require_same_tests(old, new, shared=before in only or after in only)
        pairs = zip(self.scores(before), self.scores(after), strict=True)
        return [{test: new[test] - old[test] for test in old if test in new} for old, new in pairs]

    @property
    def skills(self) -> tuple[str, ...]:
        return tuple(self.results("final")[0]["scores"])

    def by_skill(self, seeds: list[Scores]) -> dict[str, Estimate]:
        return {test: mean_interval([scores[test] for scores in seeds]) for test in seeds[0]}

    def mean(self, seeds: list[Scores], skills: Sequence[str] = ()) -> Estimate:
        return overall_interval([{test: scores[test] for test in skills or scores} for scores in seeds])

    def row(self, name: str, model: str, group: str) -> shown.Row:
        seeds = self.scores(model)
        overall = None if model in self.recipe.evaluation.only else self.mean(seeds)
        return shown.Row(model=name, group=group, scores=self.by_skill(seeds), overall=overall)

    def rows(self) -> Iterator[shown.Row]:
        study = self.recipe.study
        yield self.row("anchor", "anchor", "start")
        for expert in self.recipe.experts:
            yield self.row(expert.end, expert.end, "experts")
        yield self.row("merged, router untrained", "merged", "modular")
        yield self.row("BAR", "final", "modular")
        for group, named in (("baselines", study.baselines), ("ablations", study.ablations)):
            for name, model in named.items():
                yield self.row(name, model, group)

    def comparison(self, upgrade: Upgrade) -> shown.UpgradeResult:
        gains = self.gains(upgrade.before, upgrade.after)
        files = [json.loads((run / divergence_of(upgrade)).read_text(encoding="utf-8")) for run in self.runs]
        return shown.UpgradeResult(
            name=upgrade.name,
            before=upgrade.before,
            after=upgrade.after,
            changed=upgrade.changed,
            gains=self.by_skill(gains),
            kl={test: mean_interval([file["kl"][test] for file in files]) for test in files[0]["kl"]},
        )

    def sweep(self, sweep: Sweep) -> shown.SweepResult:
        seeds = {x + self.size(model): self.scores(model) for x, model in sweep.points.items()}
        skills = sweep.skills or self.skills
        rows = {
            skill: tuple(mean_interval([s[skill] for s in found]) for found in seeds.values())
            for skill in skills
        }
        overall = tuple(self.mean(found, skills) for found in seeds.values())
        return shown.SweepResult(
            name=sweep.name, x_label=sweep.x, xs=tuple(seeds), rows={"overall": overall} | rows
        )

    def size(self, model: str) -> str:
        """Returns what a model's experts take as small artifacts, for a label; of others nothing."""
        files = (self.runs[0] / f"{model}-experts").glob("*/*.safetensors")
        nbytes = sum(file.stat().st_size for file in files)
        return f" ({nbytes / 1e6:.3g} MB)" if nbytes else ""

    def curves(self) -> Iterator[shown.Curves]:
        """Losses of the stages that the recipe's own model is made by, and rewards of every RLVR."""
        steps = [
            "base",
            "anchor",
            *(f"{e.name}-{run.stage.name}" for e in self.recipe.experts for run in e.runs),
            "final",
        ]
        losses = {step: self._logged(step, "loss") for step in steps}
        losses = {step: runs for step, runs in losses.items() if runs and not self._logged(step, "reward")}
        if losses:
            yield shown.Curves(
                title="Loss", x="part of the stage, percent", y="nats per token", series=losses
            )
        chains = [part for part in (*self.recipe.experts, *self.recipe.more) if isinstance(part, ExpertSpec)]
        rl = [
            f"{chain.name}-{run.stage.name}" for chain in chains for run in chain.runs if run.rl is not None
        ]
        rewards = {step: runs for step in rl if (runs := self._logged(step, "reward"))}
        if rewards:
            yield shown.Curves(
                title="Reward of RLVR", x="round", y="share of answers verified", series=rewards
            )
        if self.recipe.study.retrained:
            grown = self.growth()
            series = {
                "modular": tuple(tuple(row.modular.flops for row in rows) for rows in grown),
                "retraining everything each time": tuple(
                    tuple(row.retrained.flops for row in rows) for rows in grown
                ),
            }
            yield shown.Curves(
                title="Adding domains one by one", x="domains", y="FLOPs, summed", series=series
            )

    def _logged(self, step: str, value: str) -> tuple[tuple[float, ...], ...]:
        """Returns the curve of every run, thinned by means of neighbours; empty where a run has none."""
        found = []
        for run in self.runs:
            log = run / "logs" / step / "metrics.jsonl"
            if not log.is_file():
                return ()
            values = [json.loads(line).get(value) for line in log.read_text(encoding="utf-8").splitlines()]
            if not values or None in values:
                return ()
            parts = np.array_split(np.array(values), min(POINTS, len(values)))
            found.append(tuple(float(part.mean()) for part in parts))
        return tuple(found)

    def routing(self) -> shown.RoutingShares | None:
        found = self.results("final")
        if not found[0].get("routing"):
            return None
        shares = {
            domain: np.mean([np.array(result["routing"][domain]) for result in found], axis=0).tolist()
            for domain in found[0]["routing"]
        }
        return shown.RoutingShares(
            experts=tuple(found[0]["experts"]),
            domains=tuple(shares),
            layers={domain: tuple(map(tuple, layers)) for domain, layers in shares.items()},
        )

    def lens(self) -> shown.Lens | None:
        """Returns the lens of the first run."""
        file = self.runs[0] / "lens.json"
        return from_json(shown.Lens, json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def costs(self) -> Iterator[shown.CostRow]:
        """Yields the cost of the final model's stages, then of those that only the retrained one has; means
        over the runs."""
        bills = [read_bill(run / "final") for run in self.runs]
        yield from _cost_rows("start", [bill.start for bill in bills])
        for name in bills[0].experts:
            yield from _cost_rows(name, [bill.experts[name] for bill in bills])
        yield from _cost_rows("router", [bill.router for bill in bills])
        if self.recipe.study.retrained:
            ledgers = [read_ledger(run / self.recipe.study.retrained) for run in self.runs]
            own = [
                [cost for cost in ledger if cost not in bill.start]
                for ledger, bill in zip(ledgers, bills, strict=True)
            ]
            yield from _cost_rows("retraining", own)

    def growth(self) -> list[list[Growth]]:
        """Returns the growth of every run: domains added one by one, to three times as many as there are."""
        found = []
        for run in self.runs:
            bill = read_bill(run / "final")
            found.append(growth(bill, read_ledger(run / self.recipe.study.retrained), 3 * len(bill.experts)))
        return found

    def cost_claims(self) -> Iterator[shown.ClaimResult]:
        """Yields the claims on cost of a study that has a retrained model; by the ledgers' operations, which
        do not depend on the machine."""
        if not self.recipe.study.retrained:
            return
        run = self.runs[0]
        bill = read_bill(run / "final")
        ledger = read_ledger(run / self.recipe.study.retrained)
        whole = retraining(bill, ledger).flops
        updates = {name: bill.update(name).flops for name in bill.experts}
        yield _judged(
            "updating one domain costs less than retraining everything",
            max(updates.values()) < whole,
            "FLOPs of retraining over those of the update: "
            + ", ".join(f"{n} {whole / flops:.1f}" for n, flops in updates.items()),
        )
        rows = self.growth()[0]
        ratios = {row.domains: row.retrained.flops / row.modular.flops for row in rows}
        shown_at = sorted({1, len(bill.experts), len(rows)})
        yield _judged(
            "as domains are added, cost grows linearly modularly and quadratically by retraining",
            all(later > earlier for earlier, later in pairwise(ratios.values())),
            "FLOPs of retraining each time over those of an update each time, summed: "
            + ", ".join(f"{ratios[n]:.2f} at {n} domains" for n in shown_at)
            + f"; beyond {len(bill.experts)} at the mean price of a domain",
        )

    def verdict(self, claim: Claim) -> shown.ClaimResult:
        if claim.untestable:
            return shown.ClaimResult(
                text=claim.text, source=claim.source, verdict="not testable here", evidence=claim.untestable
            )
        gains = self.gains(claim.before, claim.after)
        if claim.keeps != 1:
            had = self.gains(claim.start, claim.before) if claim.start else self.scores(claim.before)
            gains = [
                {test: moved + (1 - claim.keeps) * old[test] for test, moved in more.items()}
                for more, old in zip(gains, had, strict=True)
            ]
        skills = claim.skills or self.skills
        looked_at = (
            {skill: self.mean(gains, (skill,)) for skill in skills}
            if claim.each
            else {"": self.mean(gains, skills)}
        )
        holds = all(HOLDS[claim.expect](score, claim.margin) for score in looked_at.values())
        evidence = ", ".join(f"{skill} {_gain(score)}".strip() for skill, score in looked_at.items())
        where = "" if claim.each else " on " + (", ".join(skills) if claim.skills else "all skills")
        within = "within" if claim.expect in ("same", "not lower") else "by more than"
        wanted = claim.expect + (f", {within} {100 * claim.margin:g} points" if claim.margin else "")
        if claim.keeps != 1:
            of = f"the gain from {claim.start} to {claim.before}" if claim.start else claim.before
            wanted += f", than {100 * claim.keeps:g} % of {of}"
        return _judged(
            claim.text,
            holds,
            f"{claim.before} to {claim.after}{where}: {evidence}; asked: {wanted}",
            claim.source,
        )

    def provenance(self) -> shown.Provenance:
        seeds = tuple(
            json.loads((run / "steps.json").read_text(encoding="utf-8"))["branched"]["choices"]["seed"]
            for run in self.runs
        )
        return shown.Provenance(
            date=datetime.now(UTC).date().isoformat(),
            commit=_commit(),
            machine=f"{cpu.device_name()}, {os.cpu_count()} cores, {platform.system()}",
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in PACKAGES},
                "megatron_bar": __version__,
            },
            seeds=seeds,
            items={skill: len(items) for skill, items in self.results("final")[0]["scores"].items()},
        )


def _cost_rows(domain: str, runs: Sequence[Sequence[Cost]]) -> Iterator[shown.CostRow]:
    for entries in zip(*runs, strict=True):
        prices = [price([entry]) for entry in entries]
        yield shown.CostRow(
            domain=domain,
            stage=entries[0].stage,
            tokens=round(np.mean([p.tokens for p in prices])),
            flops=float(np.mean([p.flops for p in prices])),
            seconds=float(np.mean([entry.seconds for entry in entries])),
            devices=entries[0].devices,
        )


def _judged(text: str, holds: bool, evidence: str, source: str = PUBLISHED) -> shown.ClaimResult:
    return shown.ClaimResult(
        text=text, source=source, verdict="holds" if holds else "does not hold", evidence=evidence
    )


def _gain(score: Estimate) -> str:
    """In points, with its interval."""
    return f"{wording.points(score)} ({wording.interval_of(score, signed=True)})"


def _commit() -> str:
    """Returns that of the code that runs; empty where it is no git checkout, though the folder above may be
    one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
