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
