"""Results as lines for a terminal."""

from megatron_bar.cli import aligned
from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19.paper import COLUMNS, PUBLISHED
from megatron_bar.evaluation.benchmarks.suite import TOY
from megatron_bar.report.bootstrap import Estimate, mean_interval, overall_interval
from megatron_bar.report.report import Table


def table(results: dict) -> list[str]:
    """Returns lines with scores in percent: by test with 95 % bootstrap intervals, or by benchmark and
    category with what was not measured, and the published rows beside."""
    about = f"{results['model']}: suite {results['suite']}"
    if results["active_experts"]:
        active = results["active_experts"]
        about += f", {', '.join(map(str, active)) if isinstance(active, list) else active} active experts"
    if results["limit"]:
        about += f", at most {results['limit']} items of each task"
    if "categories" in results:
        return [about, *_settings(results), *_benchmarks(results), "", *_beside_the_paper(results)]
    return [about, *(_benchmarks(results) if "benchmarks" in results else _tests(results))]


def shown_tables(results: dict) -> tuple[Table, ...]:
    """Returns results of published benchmarks as tables of a report."""
    if "categories" not in results:
        raise BarError(f"results of {results['model']}: expected the suite bar19, got {results['suite']}")
    benchmarks, notes = _rows(results)
    about = [*_settings(results)]
    if results["limit"]:
        about.append(f"at most {results['limit']} items of each benchmark")
    named = {"title": f"Published benchmarks: {results['model']}", "rows": tuple(map(tuple, benchmarks))}
    beside = {"title": f"Beside the paper: {results['model']}", "rows": tuple(map(tuple, _paper(results)))}
    return Table(**named, notes=(*about, *notes)), Table(**beside)


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


def _settings(results: dict) -> list[str]:
    settings = results["settings"]
    judges = [f"judge {kind}: {model}" for kind, model in settings["judges"].items()]
    return ["; ".join([f"protocol {settings['protocol']}", f"answers by the {settings['through']}", *judges])]


def _benchmarks(results: dict) -> list[str]:
    rows, notes = _rows(results)
    return aligned(rows) + notes


def _rows(results: dict) -> tuple[list[list[str]], list[str]]:
    """Returns the table with its head, and what a reader of its scores must know."""
    rows = [["category", "benchmark", "percent", "95 % interval", "items", "metric"]]
    notes = []
    entries = results["benchmarks"]
    for category in dict.fromkeys(entry["category"] for entry in entries.values()):
        for name, entry in entries.items():
            if entry["category"] != category:
                continue
            rows.append([category, name, *_entry(entry)])
            notes += [f"{name}: {note}" for note in _notes(entry)]
        if "categories" in results:
            rows.append([category, "mean", *_average(results["categories"][category], "benchmarks")])
    if "overall" in results:
        rows.append(["overall", "mean", *_average(results["overall"], "categories")])
    return rows, notes


def _entry(entry: dict) -> list[str]:
    if "score" not in entry:
        asked = entry["not_measured"] != "not asked for"
        return ["-", "", "-", "not measured" if asked else "not asked for"]
    interval = f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f}" if "low" in entry else ""
    return [f"{100 * entry['score']:.1f}", interval, str(entry["items"]), entry["metric"]]


def _notes(entry: dict) -> list[str]:
    """Returns what a reader of the score must know."""
    if "score" not in entry:
        why = entry["not_measured"]
        return [] if why == "not asked for" else [f"not measured: {why}"]
    notes = []
    if entry.get("differs"):
        notes.append(f"differs from the published run: {entry['differs']}")
    if entry.get("too_long"):
        notes.append(f"{entry['too_long']} prompts too long for the model, graded as empty answers")
    if entry.get("cut"):
        notes.append(f"{entry['cut']} answers cut at the length limit")
    return notes


def _average(average: dict, parts: str) -> list[str]:
    mean = "-" if average["mean"] is None else f"{100 * average['mean']:.1f}"
    partial = f"partial: {average['measured']} of {average['of']} {parts}" if average["partial"] else ""
    return [mean, "", "", partial]


def _beside_the_paper(results: dict) -> list[str]:
    rows = _paper(results)
    partial = any("(partial)" in cell for cell in rows[1])
    return aligned(rows) + (["(partial): of the benchmarks that were measured"] if partial else [])


def _paper(results: dict) -> list[list[str]]:
    """Returns the model's averages above the published rows."""
    averages = {"overall": results["overall"], **results["categories"]}
    mine = [_cell(averages.get(column)) for column in COLUMNS]
    rows = [["percent", *COLUMNS], [results["model"], *mine]]
    return rows + [[f"{name} (published)", *map(str, numbers)] for name, numbers in PUBLISHED.items()]


def _cell(average: dict | None) -> str:
    if average is None or average["mean"] is None:
        return "-"
    return f"{100 * average['mean']:.1f}" + (" (partial)" if average["partial"] else "")
