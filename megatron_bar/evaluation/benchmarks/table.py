"""Results as lines for a terminal."""

from megatron_bar.cli import aligned
from megatron_bar.evaluation.benchmarks.suite import TOY
from megatron_bar.report.bootstrap import Estimate, mean_interval, overall_interval


def table(results: dict) -> list[str]:
    """Returns lines with scores in percent: by test with 95 % bootstrap intervals, or by benchmark and
    category with what was not measured."""
    about = f"{results['model']}: suite {results['suite']}"
    if results["active_experts"]:
        active = results["active_experts"]
        about += f", {', '.join(map(str, active)) if isinstance(active, list) else active} active experts"
    if results["limit"]:
        about += f", at most {results['limit']} items of each task"
    return [about, *(_benchmarks(results) if "benchmarks" in results else _tests(results))]


def _tests(results: dict) -> list[str]:
    tests = {name: [item["score"] for item in items] for name, items in results["scores"].items()}
    rows = [[name, str(len(scores)), *_cells(mean_interval([scores]))] for name, scores in tests.items()]
    total = len(TOY.benchmarks)
    label = "overall" if len(tests) == total else f"partial: {len(tests)} of {total}"
    items = sum(map(len, tests.values()))
    rows.append([label, str(items), *_cells(overall_interval([tests]))])
    return aligned([["test", "items", "percent", "95 % interval"], *rows])


def _cells(score: Estimate) -> list[str]:
    return [f"{100 * score.mean:.1f}", f"{100 * score.low:.1f} to {100 * score.high:.1f}"]


def _benchmarks(results: dict) -> list[str]:
    entries = results["benchmarks"]
    rows = [["category", "benchmark", "percent", "items", "metric"]]
    missing = []
    for category, average in results["categories"].items():
        for name, entry in entries.items():
            if entry["category"] != category:
                continue
            if "score" in entry:
                percent = f"{100 * entry['score']:.1f}"
                rows.append([category, name, percent, str(entry["items"]), entry["metric"]])
            elif entry["not_measured"] == "not asked for":
                rows.append([category, name, "-", "-", "not asked for"])
            else:
                rows.append([category, name, "-", "-", "not measured"])
                missing.append(f"{name}: not measured: {entry['not_measured']}")
        rows.append([category, "mean", *_average(average, "benchmarks")])
    rows.append(["overall", "mean", *_average(results["overall"], "categories")])
    return aligned(rows) + missing


def _average(average: dict, parts: str) -> list[str]:
    mean = "-" if average["mean"] is None else f"{100 * average['mean']:.1f}"
    partial = f"partial: {average['measured']} of {average['of']} {parts}" if average["partial"] else ""
    return [mean, "", partial]
