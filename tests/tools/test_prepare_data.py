"""`bar prepare`: the published recipe's data from an invented mirror, which every stage of it takes; what it
lists; the hub, asked by huggingface_hub; and what a user can get wrong, in one line."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from data.hub_server import COMMIT, TOKEN, hub_of
from data.mirror import ROWS, make_mirror
from data.test_prepare import contents
from folders import add_tokenizer
from scripts import ENV, ROOT

from megatron_bar.data.tokenizer import HOLE
from megatron_bar.recipes import load_recipe, published
from megatron_bar.weights.whole import write_json

RECIPE = load_recipe("olmo2_7b")
READ = {source.place for source in RECIPE.sources}
OF_STAGES = [row for row in RECIPE.from_hub if row.path in READ]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    return make_mirror(tmp_path_factory.mktemp("mirror"), OF_STAGES)


@pytest.fixture(scope="module")
def data(mirror, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "data"
    command = [sys.executable, ROOT / "tools/prepare_data.py", "olmo2_7b", "--from", mirror, "--out", out]
    done = subprocess.run([*command, "--accept-counts"], capture_output=True, text=True, env=ENV, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return out


def test_the_table_has_every_file_that_a_stage_reads():
    assert {row.path for row in OF_STAGES} == READ
    names = [row.path for row in RECIPE.from_hub]
    assert len(set(names)) == len(names)


def test_the_counts_add_up_to_the_published_ones():
    rows = {row.name: row.rows for row in RECIPE.from_hub}
    total = lambda *starts: sum(n for name, n in rows.items() if name.startswith(starts))  # noqa: E731
    assert total("sft/general/") == 332_333
    assert sum(row.rows for row in published.MATH) == 334_252
    assert (107_270 + 34_999 + 186_345, 49_980 + 19_999 + 50_000 + 149_958) == (
        rows["sft/code/dolci_instruct_sft_coding"],
        rows["sft/math/dolci_instruct_sft_math"],
    )
    assert total("rlvr/math/") == 20_000 + 14_000 + 14_000 + 8_998 + 7_000


def test_every_file_is_there_and_whole(data):
    assert {path.relative_to(data) for path in data.rglob("*.jsonl")} == READ
    manifest = json.loads((data / "manifest.json").read_text())["files"]
    assert {Path(name) for name in manifest} == READ
    assert {entry["kept"] for entry in manifest.values()} == {ROWS}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """What is read of a model before a run: its config and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    write_json(folder / "config.json", RECIPE.shape.to_hf())
    add_tokenizer(folder, ("<|pad|>", "<|endoftext|>", *HOLE, "<|im_start|>", "<|im_end|>"), special=7)
    return folder


def dry_run(run, data: Path, model: Path, out: Path) -> tuple[int, str, str]:
    changes = (f"data={data}", f"base={model}", f"anchor={model}")
    return run("examples/pretrain_bar.py", "olmo2_7b", "--dry-run", "--out", out, "--set", *changes)


def test_every_stage_takes_them(data, model, tmp_path, run):
    """The dry run, which looks at every row as its stage will use it."""
    status, out, err = dry_run(run, data, model, tmp_path / "out")
    assert (status, err) == (0, ""), err
    assert f" of {len(READ)} sources looked at as the stages will use them" in out
    assert "refused" not in out and "math/dolci_instruct_sft_math.jsonl" in out


def test_a_row_that_was_spoiled_since_is_seen_by_the_dry_run(data, model, tmp_path, run):
    spoiled = tmp_path / "data"
    shutil.copytree(data, spoiled)
    path = spoiled / "sft/tool_use/dolci_instruct_sft_tool_use.jsonl"
    path.write_text(path.read_text().replace('"role": "environment"', '"role": "nobody"', 1))
    status, _, err = dry_run(run, spoiled, model, tmp_path / "out")
    assert status == 1 and "dolci_instruct_sft_tool_use.jsonl:1: message 3: expected a role of" in err


def test_the_others_of_the_published_data_take_the_same(data):
    for name in ("olmo2_1b", "olmo2_13b", "olmo2_32b", "qwen3_8b", "llama31_8b"):
        recipe = load_recipe(name)
        assert recipe.from_hub == RECIPE.from_hub
        assert {source.place for source in recipe.sources} == READ


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes(mirror, data, tmp_path):
    """The whole command, killed after ever more of its lines."""
    out = tmp_path / "data"
    command = [sys.executable, ROOT / "tools/prepare_data.py", "olmo2_7b", "--from", mirror, "--out", out]
    command.append("--accept-counts")
    for number in (3, 9, 1):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENV)
        for _ in range(number):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(out) == contents(data)


def test_the_list_says_what_would_be_read_and_downloads_nothing(inline, tmp_path):
    status, out, err = inline("prepare_data", "olmo2_7b", "--list")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    for row in OF_STAGES:
        (line,) = (line for line in lines if line.startswith(f"{row.path} "))
        assert (
            row.hub.id in line
            and row.licence in line
            and (f"{row.rows:,}" if row.rows else "not known") in line
        )
        assert not row.note or f"    {row.note}" in lines
    assert "preference/olmo2" not in out
    assert lines[-1].startswith("to read 5.0 GB and 5 sets of sizes not known")


def test_the_list_of_a_mirror_has_its_sizes(inline, mirror):
    status, out, _ = inline("prepare_data", "olmo2_7b", "--list", "--from", mirror, "--only", "sft/general")
    assert status == 0 and "allenai/tulu-3-sft-mixture  2 files" in out and "on disk about" in out


def test_only_some_files_are_made(inline, mirror, tmp_path):
    out = tmp_path / "data"
    given = ("--from", mirror, "--out", out, "--accept-counts", "--only", "sft/general/wildchat", "rlvr/math")
    status, printed, err = inline("prepare_data", "olmo2_7b", *given)
    assert (status, err) == (0, "")
    made = [row.path for row in OF_STAGES if row.name.startswith(("sft/general/wildchat", "rlvr/math/"))]
    assert {path.relative_to(out) for path in out.rglob("*.jsonl")} == set(made) and len(made) == 6
    assert "sft/general/wildchat.jsonl  12 rows" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("tiny --out OUT", "recipe tiny: expected one with public data, as olmo2_7b, got none in it"),
        ("olmo2_7b --out OUT --only sft/generel", "--only sft/generel: expected a file of midtrain/math/"),
        (
            "olmo2_7b --out OUT --from OUT/nowhere",
            "OUT/nowhere: expected a folder with the files of hub data sets",
        ),
        ("olmo2_7b --out OUT --from MIRROR --max-refused 5", "max_refused expected within 0 and 1, got 5"),
        ("olmo2_7b --out OUT --from MIRROR --tokenizer OUT", "OUT"),
        ("olmo2_7b --out FILE --from MIRROR", "FILE: expected a folder to write to, got a file or a link"),
        (
            "olmo2_7b --out OUT --from MIRROR",
            "expected 6,699,493 rows of HuggingFaceTB/finemath, got 12; --accept-counts",
        ),
    ],
)
def test_a_users_mistake_is_one_line(arguments, message, inline, mirror, tmp_path):
    (tmp_path / "file").touch()
    places = {"OUT": tmp_path / "out", "MIRROR": mirror, "FILE": tmp_path / "file"}

    def filled(text: str) -> str:
        for name, path in places.items():
            text = text.replace(name, str(path))
        return text

    status, _, err = inline("prepare_data", *filled(arguments).split())
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1 and filled(message) in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---- the hub, asked by huggingface_hub itself


def ask(address: str, *arguments, **env: str) -> tuple[int, str, str]:
    command = [sys.executable, ROOT / "tools/prepare_data.py", "olmo2_7b", "--accept-counts", *arguments]
    home = {"HF_ENDPOINT": address, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=ENV | home | env, check=False)
    return done.returncode, done.stdout, done.stderr


FEW = ("--only", "sft/general", "midtrain/code")


def test_the_hub_gives_what_a_mirror_gives(mirror, data, tmp_path):
    with hub_of(mirror) as (address, asked):
        status, _, err = ask(address, "--out", tmp_path / "out", *FEW, HF_HOME=str(tmp_path / "home"))
    assert status == 0, err
    made = contents(tmp_path / "out")
    assert made.keys() - {"manifest.json"} == {
        str(row.path) for row in OF_STAGES if row.name.startswith(("sft/general", "midtrain/code"))
    }
    whole = contents(data)
    assert all(made[name] == whole[name] for name in made if name != "manifest.json")
    entries = json.loads(made["manifest.json"])["files"]
    assert {entry["commit"] for entry in entries.values()} == {COMMIT}
    files = {file["name"] for entry in entries.values() for file in entry["files"]}
    got = [line for line in asked if line.startswith("GET /datasets/")]
    assert len(got) == len(files)  # each once, though seven files are made of the mixture


def test_a_gated_set_without_a_token_is_one_line(mirror, tmp_path):
    home = {"HF_HOME": str(tmp_path / "home")}
    gated = "allenai/tulu-3-sft-mixture"
    with hub_of(mirror, gated=gated) as (address, _):
        line = refused_line(ask(address, "--out", tmp_path / "out", *FEW[:2], **home))
        assert line.startswith(f"error: {gated}: gated, expected a token that its terms were accepted with")
        status, _, err = ask(address, "--out", tmp_path / "out", *FEW[:2], **home, HF_TOKEN=TOKEN)
        assert (status, err) == (0, "")


def refused_line(result: tuple[int, str, str]) -> str:
    status, _, err = result
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_a_hub_that_nobody_reaches_is_one_line(tmp_path):
    result = ask("http://127.0.0.1:9", "--out", tmp_path / "out", *FEW, HF_HOME=str(tmp_path / "home"))
    line = refused_line(result)
    assert (
        "expected its files from the hub, got ConnectError" in line
        and "--from reads a folder of them" in line
    )
    assert not (tmp_path / "out").exists()
