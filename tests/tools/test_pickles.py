"""Pickles and foreign code on every load path of every tool: none is executed."""

import ast
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import edit_json
from scripts import ROOT
from test_convert import Evil

from megatron_bar.data.preprocess import preprocess
from megatron_bar.data.sources import Source
from megatron_bar.weights.folder import INDEX, SINGLE
from megatron_bar.weights.manifest import MANIFEST

FOLDER_TOOLS = {
    "branch_expert": "--anchor dense --domain-init dense --out out",
    "merge_experts": "--anchor branched --expert math=expert --out out",
    "inspect_model": "branched",
    "verify_frozen": "branched expert --stage midtrain",
    "import_hf": "--hf branched --out out",
}
EXPORT = "--checkpoint checkpoint --out out --verify logits"
TOKENS = "--input {} --kind chat --tokenizer dense --out out --processes 1"
SMALL = ("sequence=32", "batch=1", "micro_batch=1", "epochs=3", "save_every=1")
TRAINING = " ".join(
    (
        f"{ROOT}/examples/own_data.py:recipe --out run --expert math --set base=dense anchor=dense data=.",
        "route.data={0} experts.math.sft.data={0}",
        *(f"experts.math.sft.{change}" for change in SMALL),
    )
)


def source(path: str = "x.jsonl", kind: str = "chat") -> str:
    row = {"path": path, "kind": kind, "domain": "", "share": 1.0, "last_turn": False}
    return json.dumps([row], separators=(",", ":"))


LOAD_PATHS: list[tuple[str, str, tuple[str, ...]]] = [
    # (tool, its arguments, files that are pickles)
    *(
        (tool, arguments, (f"{folder}/{file}",))
        for tool, arguments in FOLDER_TOOLS.items()
        for folder in ("dense", "branched", "expert")
        if folder in arguments
        for file in (
            SINGLE,
            INDEX,
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            MANIFEST,
        )
    ),
    *((tool, arguments, ("dense", "branched", "expert")) for tool, arguments in FOLDER_TOOLS.items()),
    *(
        ("export_hf", EXPORT, (f"checkpoint/{file}",))
        for file in (
            ".metadata",
            "common.pt",
            "metadata.json",
            "__0_0.distcp",
            MANIFEST,
            "tokenizer.json",
            "config.json",
        )
    ),
    *(
        ("preprocess_data", TOKENS.format(file), (file,))
        for file in ("y.jsonl", "y.jsonl.gz", "y.jsonl.zst", "y.parquet", "rows/y.parquet")
    ),
    (
        "preprocess_data",
        TOKENS.format("rows"),
        ("rows/state.json", "rows/dataset_info.json", "rows/data-00000-of-00001.arrow"),
    ),
    ("preprocess_data", TOKENS.format("x.jsonl"), ("dense/tokenizer.json",)),
    ("preprocess_data", TOKENS.format("x.jsonl").replace("dense", "y.model"), ("y.model",)),
    ("preprocess_data", TOKENS.format("x.jsonl"), (".out.partial/000000.npz",)),
    ("preview_data", "--input y.jsonl --tokenizer dense", ("y.jsonl",)),
    (
        "branch_expert",
        FOLDER_TOOLS["branch_expert"] + " --router-init domain --general-text y --domain-text y",
        ("y",),
    ),
    *(
        ("pretrain_bar", TRAINING.format(source(path="z", kind="tokens")), (f"z.{end}",))
        for end in ("bin", "idx", "learn")
    ),
    ("pretrain_bar", TRAINING.format(source()), ("run/steps.json",)),
]


def evil_code(folder: Path, marker: Path) -> None:
    """As a hub's model brings its own classes: transformers imports them only for who trusts them."""
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass Evil: pass\n"
    (folder / "evil.py").write_text(code)
    auto = {
        "AutoConfig": "evil.Evil",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    }
    edit_json(folder / "config.json", auto_map=auto)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto, "tokenizer_class": "Evil"}))


def prepare(place: Path, run, monkeypatch) -> list[tuple[str, str, tuple[str, ...]]]:
    """A converted checkpoint, token files begun, a stage with its checkpoints; and that stage's load
    paths."""
    monkeypatch.chdir(place)
    assert run("tools/import_hf.py", "--hf", "branched", "--out", "checkpoint")[0] == 0
    with pytest.raises(KeyboardInterrupt):
        preprocess(
            Source(path=Path("x.jsonl"), kind="chat"), Path(), Path("dense"), Path("out"), say=interrupt
        )
    (place / ".out.partial").rename(place / "begun")
    training = TRAINING.format(source())
    assert (
        run("examples/pretrain_bar.py", *training.replace("--expert math", "--stage branch").split())[0] == 0
    )
    with monkeypatch.context() as patch:
        patch.setattr("megatron_bar.training.checkpoint.Checkpoints.remove", lambda self: None)
        assert run("examples/pretrain_bar.py", *training.split())[0] == 0
    shutil.rmtree(place / "run/math-sft")
    for tokens in (place / "run/tokens").glob("x-*/tokens.*"):
        shutil.copy(tokens, place / f"z{tokens.suffix}")
    assert (place / "z.learn").is_file()
    files = [
        str(file.relative_to(place))
        for file in sorted((place / "run/.math-sft.checkpoints").rglob("*"))
        if file.is_file()
    ]
    assert files
    return [("pretrain_bar", training, (file,)) for file in files]


def interrupt(amount: int, tokens: int) -> None:
    raise KeyboardInterrupt


def pickles(marker: Path) -> list[bytes]:
    """One as pickle writes it, one as torch does, one as numpy does."""
    zipped, arrays = io.BytesIO(), io.BytesIO()
    torch.save([Evil(Path.touch, (marker,))], zipped)
    np.savez(
        arrays,
        ids=np.array([Evil(Path.touch, (marker,))], object),
        lengths=np.array([Evil(Path.touch, (marker,))], object),
    )
    return [pickle.dumps(Evil(Path.touch, (marker,))), zipped.getvalue(), arrays.getvalue()]


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.faults)], ids=["sample", "all"])
def test_no_pickle_is_executed_on_any_load_path(
    every, tmp_path, new_place, run, monkeypatch, record_property
):
    marker, tried = tmp_path / "executed", 0
    prepared, place = new_place(tmp_path / "prepared"), tmp_path / "place"
    paths = (LOAD_PATHS + prepare(prepared, run, monkeypatch))[::every]
    for tool, arguments, files in paths:
        for data in pickles(marker):
            monkeypatch.chdir(shutil.copytree(prepared, place))
            if files[0].startswith(
                ".out.partial"
            ):  # what a run left that was interrupted after its first block
                (place / "begun").rename(place / ".out.partial")
            for file in files:
                target = place / file
                for path in (
                    [target]
                    if not target.is_dir()
                    else [target / name for name in ("pytorch_model.bin", "model.pt")]
                ):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
            folder = "examples" if tool == "pretrain_bar" else "tools"
            status, _, err = run(f"{folder}/{tool}.py", *arguments.split())
            assert not marker.exists(), (tool, arguments, files)
            assert status == 0 or (err.startswith("error: ") and err.count("\n") == 1), (
                tool,
                arguments,
                files,
                err,
            )
            tried += 1
            shutil.rmtree(place)
    for data in pickles(marker)[:2]:
        with io.BytesIO(data) as file:
            pickle.load(file) if data[:2] != b"PK" else torch.load(file, weights_only=False)  # noqa: S301  our own
        assert marker.exists(), "the pickle is harmless, so this test shows nothing"
        marker.unlink()
    record_property("figure", f"pickles: {tried} on {len(paths)} load paths, 0 executed")


def test_code_that_a_folder_brings_is_not_executed(tmp_path, new_place, run, monkeypatch):
    marker, place = tmp_path / "executed", new_place(tmp_path / "root")
    evil_code(place / "dense", marker)
    monkeypatch.chdir(place)
    for tool, arguments in (
        ("branch_expert", FOLDER_TOOLS["branch_expert"].replace("--out out", "--out two")),
        ("import_hf", "--hf dense --out checkpoint"),
        ("export_hf", EXPORT),
        ("preprocess_data", TOKENS.format("x.jsonl").replace("--out out", "--out tokens")),
    ):
        status, _, err = run(f"tools/{tool}.py", *arguments.split())
        assert status == 0, err
    assert not marker.exists() and not (place / "out/evil.py").exists()
    assert "evil" not in (place / "out/config.json").read_text() + (place / "two/config.json").read_text()


FORBIDDEN = {
    *("pickle.load", "pickle.loads", "dill.load", "dill.loads", "joblib.load", "shelve.open"),
    *(
        "torch.hub.load",
        "torch.jit.load",
        "torch.package.PackageImporter",
        "pandas.read_pickle",
        "load_common_state_dict",
    ),
}


def calls(tree: ast.AST) -> list[tuple[str, dict[str, str]]]:
    """(function, keyword arguments as written) of every call."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        (ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords})
        for node in found
    ]


@pytest.mark.parametrize(
    "file", [p for part in ("megatron_bar", "tools", "examples") for p in sorted((ROOT / part).rglob("*.py"))]
)
def test_no_file_unpickles_freely_or_trusts_code_from_elsewhere(file):
    text = file.read_text(encoding="utf-8")
    assert "trust_remote_code" not in text and "allow_pickle=True" not in text
    for function, words in calls(ast.parse(text)):
        assert function not in FORBIDDEN and not function.endswith("Unpickler"), function
        assert function != "torch.load", function
        if function in ("np.load", "numpy.load"):
            assert words.get("allow_pickle") == "False", function
    if "pickle" in {
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import)
        for alias in node.names
    }:
        assert file.name == "dist_files.py", "only there: it writes a description"
