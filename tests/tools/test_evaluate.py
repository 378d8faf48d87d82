"""tools/evaluate.py: the table and the file it writes, alone and under torchrun; every bad input is one
line."""

import importlib.util
import json
import re
import shutil
import sys

import pytest
from evaluation.tiny_chat import answers, save_chat_hf, write_world
from folders import edit_json
from scripts import process, refused

import megatron_bar.evaluation.benchmarks.folder  # noqa: F401  what it warns of when it is imported is not the tool's line
from megatron_bar.evaluation.results import read_results


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder beside its world, of whose items half are right by what transformers answers; the toy asks for
    64 new tokens."""
    root = tmp_path_factory.mktemp("evaluate")
    model = save_chat_hf(root / "model")
    write_world(root / "world", [text if n % 2 else "no" for n, text in enumerate(answers(model, new=64))])
    return root


def test_the_toy_is_scored_and_written(place, tmp_path, inline):
    status, out, err = inline(
        "evaluate", place / "model", "--suite", "toy", "--batch", 3, "--out", tmp_path / "a.json"
    )
    assert status == 0, err
    assert out.splitlines()[0] == "model: suite toy, 3 active experts"
    assert out.splitlines()[-1].split()[:3] == ["overall", "28", "50.0"]
    found = read_results(tmp_path / "a.json")
    assert [[item["score"] for item in items] for items in found["scores"].values()] == 7 * [[0, 1, 0, 1]]


@pytest.mark.slow
def test_the_toy_is_scored_alike_on_any_layout(place, tmp_path):
    asked = (place / "model", "--suite", "toy", "--batch", 3)
    status, alone, err = process("evaluate", *asked, "--out", tmp_path / "a.json")
    assert status == 0, err
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    status, spread, err = process(
        "evaluate", *asked, "--tensor", 2, "--out", tmp_path / "b.json", launcher=launcher
    )
    assert status == 0, err
    assert spread == alone and read_results(tmp_path / "b.json") == read_results(tmp_path / "a.json")


BAD = {
    "unknown suite": ("MODEL --suite helm", r"suite helm: expected one of toy, bar19, bar19-lm-eval"),
    "unknown task": (
        "MODEL --suite toy --task cooking",
        r"task cooking: expected one of suite toy's: knowledge, ",
    ),
    "unknown task of bar19": (
        "MODEL --suite bar19 --task arc",
        r"task arc: expected one of suite bar19's: mmlu, ",
    ),
    "limit 0": ("MODEL --suite toy --limit 0", r"limit expected at least 1, got 0"),
    "batch 0": ("MODEL --suite bar19-lm-eval --batch 0", r"batch expected at least 1, got 0"),
    "four of three experts": (
        "MODEL --suite toy --active-experts 4",
        r"active experts expected from 1 to 3, got 4",
    ),
    "four of three, by lm-eval": (
        "MODEL --suite bar19-lm-eval --active-experts 4",
        r"active experts expected from 1 to 3, got 4",
    ),
    "not there": ("NOWHERE --suite toy", r"config\.json: not found; expected"),
    "no model": ("WORLD --suite bar19", r"config\.json: not found; expected"),
    "no data": (
        "LONELY --suite toy",
        r"world: not found; expected a folder of test_SKILL\.jsonl \(--data DIR\)",
    ),
    "data that are not there": (
        "MODEL --suite toy --data NOWHERE",
        r"nowhere: not found; expected a folder of test_SKILL",
    ),
    "a test set missing": (
        "MODEL --suite toy --data LONELY",
        r"test_knowledge\.jsonl: not found; expected a JSONL",
    ),
    "no tokenizer": ("NO_TOKENIZER --suite toy", r"tokenizer\.json: not found; expected a tokenizer\.json"),
    "no chat template": (
        "NO_TEMPLATE --suite bar19",
        r"no_template: the tokenizer has no chat template of its own",
    ),
    "no server for bar19": (
        "MODEL --suite bar19 --server http://127.0.0.1:9",
        r"http://127\.0\.0\.1:9: expected an OpenAI-like",
    ),
    "no server for lm-eval": (
        "MODEL --suite bar19-lm-eval --server http://127.0.0.1:9",
        r"http://127\.0\.0\.1:9: expected an OpenAI-like",
    ),
    "no data for bar19": ("MODEL --suite bar19", r"suite bar19 expected --data DIR, got none"),
    "data of bar19 that are not there": (
        "MODEL --suite bar19 --data NOWHERE",
        r"nowhere: not found; expected a folder of NAME\.jsonl \(bar prepare bar19 --out DIR\)",
    ),
    "no file of bar19": (
        "MODEL --suite bar19 --data WORLD",
        r"suite bar19: nothing can be measured here; mmlu: .*mmlu\.jsonl not found; make it by",
    ),
    "another protocol": (
        "MODEL --suite bar19 --data WORLD --protocol lucky",
        r"protocol expected one of published, greedy, got 'lucky'",
    ),
    "requests without a server": (
        "MODEL --suite bar19 --data WORLD --requests 4",
        r"suite bar19 without --server has no use for --requests, got 4",
    ),
    "no patience": (
        "MODEL --suite bar19 --data WORLD --server http://127.0.0.1:9 --patience 0",
        r"patience expected above 0 seconds, got 0",
    ),
    "a judge without a name": (
        "MODEL --suite toy --judge http://127.0.0.1:9",
        r"--judge http://127\.0\.0\.1:9: expected wildguard, grader, pairwise before a = and a URL",
    ),
    "answers of the toy": ("MODEL --suite toy --answers WORLD", r"suite toy has no use for --answers"),
    "only scores of lm-eval": (
        "MODEL --suite bar19-lm-eval --score-only",
        r"suite bar19-lm-eval has no use for --score-only",
    ),
    "a server for the toy": (
        "MODEL --suite toy --server http://127.0.0.1:9",
        r"suite toy has no use for --server",
    ),
    "data for lm-eval": (
        "MODEL --suite bar19-lm-eval --data WORLD",
        r"suite bar19-lm-eval has no use for --data",
    ),
    "tensor 2 for lm-eval": (
        "MODEL --suite bar19-lm-eval --tensor 2",
        r"suite bar19-lm-eval has no use for --tensor, got 2",
    ),
    "no tasks": (
        "MODEL --suite bar19-lm-eval --tasks-dir NOWHERE",
        r"nowhere: not found; expected a folder of lm-eval tasks",
    ),
    "tensor 2 on one process": (
        "MODEL --suite toy --tensor 2",
        r"tensor 2 x pipeline 1 = 2 does not divide the 1 processes",
    ),
}


@pytest.fixture(scope="module")
def paths(place):
    lonely, no_tokenizer, no_template = (
        place / "deep" / name for name in ("lonely", "no_tokenizer", "no_template")
    )
    for copy in (lonely, no_tokenizer, no_template):
        shutil.copytree(place / "model", copy)
    (no_tokenizer / "tokenizer.json").unlink()
    edit_json(no_template / "tokenizer_config.json", chat_template=None)
    found = {
        "MODEL": place / "model",
        "WORLD": place / "world",
        "NOWHERE": place / "nowhere",
        "LONELY": lonely,
    }
    return found | {"NO_TOKENIZER": no_tokenizer, "NO_TEMPLATE": no_template}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, paths, inline):
    if "lm-eval" in name and importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed")
    words, message = BAD[name]
    line = refused(
        inline("evaluate", *[paths.get(word, word) for word in words.split()], "--out", paths["NOWHERE"])
    )
    assert re.search(message, line), line
    assert not paths["NOWHERE"].exists()


def test_without_lm_eval_it_says_how_to_install_it(paths, inline, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as where it is not installed
    line = refused(inline("evaluate", paths["MODEL"], "--suite", "bar19-lm-eval"))
    assert "lm-eval is not installed" in line and "pip install -e '.[eval]'" in line


def test_an_item_without_a_usable_truth_is_named(place, tmp_path, inline):
    shutil.copytree(place / "world", tmp_path / "world")
    with (tmp_path / "world" / "test_chat.jsonl").open("a") as file:
        file.write(
            json.dumps({"messages": [{"role": "user", "content": "x"}], "verifier": "math", "truth": None})
            + "\n"
        )
    line = refused(inline("evaluate", place / "model", "--suite", "toy", "--data", tmp_path / "world"))
    assert "test_chat.jsonl:5: math truth: expected a number or a text" in line
