"""`bar report`: a report's files again from its JSON, and one line where there is none."""

import json
import shutil

from scripts import ROOT, refused

RESULTS = ROOT / "docs/results"


def test_the_published_report_is_what_its_json_says(inline, tmp_path):
    shutil.copy(RESULTS / "report.json", tmp_path)
    assert inline("report", tmp_path) == (0, f"{tmp_path}: report.md, report.html\n", "")
    for name in ("report.json", "report.md", "report.html"):
        same = (tmp_path / name).read_bytes() == (RESULTS / name).read_bytes()
        assert same, f"{name} is not what this code makes of report.json: bar report docs/results"


def test_what_is_no_report_is_one_line(inline, tmp_path):
    file = tmp_path / "report.json"
    assert f"{file}: not found; expected a report" in refused(inline("report", tmp_path))
    file.write_text("{")
    assert f"{file}: not readable as JSON" in refused(inline("report", tmp_path))
    known = json.loads((RESULTS / "report.json").read_text(encoding="utf-8"))
    for key, value, said in (("title", 3, "title must be str, got 3"), ("titel", "x", "titel")):
        file.write_text(json.dumps(known | {key: value}))
        line = refused(inline("report", tmp_path))
        assert f"{file}: " in line and said in line
    assert list(tmp_path.iterdir()) == [file]


def test_published_benchmarks_are_shown_where_results_are_given(inline, tmp_path):
    shutil.copy(RESULTS / "report.json", tmp_path)
    average = {"mean": 0.5, "measured": 1, "of": 2, "partial": True}
    none = {"mean": None, "measured": 0, "of": 1, "partial": True}
    results = {
        "format": "megatron_bar.evaluation/1",
        "suite": "bar19",
        "model": "<b>mine",
        "model_hash": "0",
        "active_experts": None,
        "limit": 4,
        "tests": {"gsm8k": {"hash": "0", "items": 1}},
        "scores": {"gsm8k": [{"score": 0.5}]},
        "settings": {"protocol": "greedy", "through": "sampler", "judges": {}},
        "benchmarks": {
            "gsm8k": {
                "category": "math",
                "score": 0.5,
                "low": 0.25,
                "high": 0.75,
                "items": 1,
                "metric": "accuracy",
            },
            "harmbench": {"category": "safety", "not_measured": "needs --judge wildguard=URL"},
        },
        "categories": {"math": average, "safety": none},
        "overall": average,
    }
    file = tmp_path / "bar19.json"
    file.write_text(json.dumps(results))
    assert inline("report", tmp_path, "--benchmarks", file)[0] == 0
    for name, mine in (("report.md", r"\<b\>mine"), ("report.html", "&lt;b&gt;mine")):
        text = (tmp_path / name).read_text(encoding="utf-8")
        for part in (
            "50.0 (partial)",
            "25.0 to 75.0",
            mine,
            "as released (published)",
            "56.2",
            "needs --judge",
        ):
            assert part in text, (name, part)
        assert "<b>mine" not in text.replace(mine, "")
    assert (
        inline("report", tmp_path)[0] == 0
        and "as released (published)" in (tmp_path / "report.md").read_text()
    )
    file.write_text(json.dumps({key: value for key, value in results.items() if key != "categories"}))
    assert "expected the suite bar19, got bar19" in refused(inline("report", tmp_path, "--benchmarks", file))
