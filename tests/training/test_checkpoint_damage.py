"""A checkpoint under its own name that is not whole: one line and status 1, never an older step in silence,
never a new start."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from distributed import start_process
from tiny_fit import STAGE, finish, left, logs, make_source, train

NEWEST, OLDER = "step-00000004", "step-00000003"
STATE, RANK = "state.json", "rank-00000.safetensors"


def edited(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    # name: (what is done to the newest checkpoint, what the line must match)
    "no state": (
        lambda p: (p / STATE).unlink(),
        rf"{NEWEST}/state\.json: not found; expected the state of a checkpoint",
    ),
    "empty state": (
        lambda p: (p / STATE).write_text(""),
        r"state\.json: not readable as JSON: Expecting value",
    ),
    "torn state": (
        lambda p: edited(p / STATE, lambda d: d[: len(d) // 2]),
        r"state\.json: not readable as JSON",
    ),
    "state of zeros": (
        lambda p: edited(p / STATE, lambda d: bytes(len(d))),
        r"state\.json: not readable as JSON",
    ),
    "state not text": (
        lambda p: (p / STATE).write_bytes(b"\xff\xfe\x00"),
        r"state\.json: not readable as JSON",
    ),
    "state a list": (
        lambda p: (p / STATE).write_text("[10]"),
        r"state\.json: expected a JSON object, got list",
    ),
    "state without content": (
        lambda p: (p / STATE).write_text("{}"),
        r"expected the state of a checkpoint .* got the keys none",
    ),
    "foreign state": (
        lambda p: (p / STATE).write_text('{"iteration": 4, "world": 1}'),
        r"state\.json: expected the state of a checkpoint with its hash, got the keys iteration, world",
    ),
    "doubled key": (
        lambda p: edited(p / STATE, lambda d: d.replace(b'"updates": 4', b'"updates": 4, "updates": 3')),
        r"state\.json: not readable as JSON: 'updates' expected once, got it 2 times",
    ),
    "number changed": (
        lambda p: edited(p / STATE, lambda d: d.replace(b'"updates": 4', b'"updates": 3')),
        r"state\.json: changed since it was written: expected BLAKE3 \w{16}, got \w{16}",
    ),
    "state a folder": (
        lambda p: replaced(p / STATE, Path.mkdir),
        r"state\.json: not readable as JSON: .*Is a directory",
    ),
    "state of another step": (
        lambda p: shutil.copy(p.with_name(OLDER) / STATE, p / STATE),
        rf"state\.json: expected the state of {NEWEST}, got that of {OLDER}",
    ),
    "a name torn": (
        lambda p: p.rename(p.with_name("step-4")),
        rf"step-4/state\.json: expected the state of step-4, got .*{NEWEST}",
    ),
    "a later name": (
        lambda p: p.rename(p.with_name("step-00000005")),
        rf"expected the state of step-00000005, got .*{NEWEST}",
    ),
    "no rank file": (
        lambda p: (p / RANK).unlink(),
        rf"{NEWEST}/{RANK}: expected a file of \d+ bytes, got none",
    ),
    "rank file a dead link": (
        lambda p: replaced(p / RANK, lambda path: path.symlink_to("nowhere")),
        rf"{RANK}: expected a file of \d+ bytes, got none",
    ),
    "rank file cut": (lambda p: edited(p / RANK, lambda d: d[:-4]), rf"{RANK}: expected \d+ bytes, got \d+"),
    "rank file empty": (lambda p: (p / RANK).write_bytes(b""), rf"{RANK}: expected \d+ bytes, got 0"),
    "rank file longer": (
        lambda p: edited(p / RANK, lambda d: d + b"\0"),
        rf"{RANK}: expected \d+ bytes, got \d+",
    ),
    "one bit": (
        lambda p: edited(p / RANK, flipped),
        rf"{RANK}: changed since it was written: expected BLAKE3 \w{{16}}, got",
    ),
    "rank file of another step": (
        lambda p: shutil.copy(p.with_name(OLDER) / RANK, p / RANK),
        rf"{RANK}: changed since it was written: expected BLAKE3",
    ),
    "nothing inside": (
        lambda p: [file.unlink() for file in p.iterdir()],
        r"state\.json: not found; expected",
    ),
    "a file of that name": (
        lambda p: replaced(p, Path.touch),
        rf"{NEWEST}/state\.json: not readable as JSON: .*Not a directory",
    ),
}


def ended(source: Path, folder: Path) -> tuple[int, str]:
    try:
        train(source, folder)
    except SystemExit as end:
        return (1, end.code) if isinstance(end.code, str) else (end.code, "")
    raise AssertionError


def all_kinds(source: Path, root: Path) -> None:
    """Every damage to a copy of ROOT/run, how a run of it ends, and one more once what it names is
    removed."""
    found = {}
    for number, (name, (damage, _)) in enumerate(DAMAGE.items()):
        folder = root / f"kind-{number}"
        shutil.copytree(root / "run", folder, symlinks=True)
        shutil.copytree(logs(root / "run"), logs(folder))
        damage(folder / ".out.checkpoints" / NEWEST)
        status, line = ended(source, folder)
        trained = (folder / "out").exists()
        remove = re.search(rf"; remove (\S+) to go on from {OLDER}$", line)
        if remove:
            path = Path(remove[1])
            path.unlink() if path.is_file() else shutil.rmtree(path)
        again = ended(source, folder)
        same = again == (0, "") and left(folder) == left(root / "straight")
        found[name] = [status, line, trained, bool(remove), same]
    (root / "report").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("damage")
    source = make_source(root / "two")
    assert finish(source, root / "straight")[0] == 0
    folder = root / "run"
    folder.mkdir()
    process = start_process(train, source, folder, output=root / "output")
    while not (folder / ".out.checkpoints" / NEWEST).exists():
        assert process.is_alive()
        time.sleep(0.001)
    process.kill()
    process.join()
    for path in (folder / ".out.checkpoints").iterdir():
        if path.name not in (NEWEST, OLDER):
            shutil.rmtree(path)
    assert not (folder / "out").exists() and STAGE.steps > 4
    process = start_process(all_kinds, source, root, output=root / "output")
    process.join()
    assert process.exitcode == 0, (root / "output").read_text()
    return json.loads((root / "report").read_text())


@pytest.mark.parametrize("name", list(DAMAGE))
def test_a_damaged_checkpoint_is_refused_by_name(name, found):
    status, line, trained, _, _ = found[name]
    assert status == 1 and not trained
    assert line.startswith("error: ") and "\n" not in line
    assert re.search(DAMAGE[name][1], line), line


@pytest.mark.parametrize("name", list(DAMAGE))
def test_what_the_line_says_to_remove_lets_the_run_go_on(name, found):
    *_, removed, same = found[name]
    assert removed and same


def test_so_many_kinds(found, record_property):
    assert len(found) >= 12
    record_property(
        "figure",
        f"damaged checkpoints: {len(found)} kinds, status 1 and the file named in each, 0 older steps in "
        f"silence",
    )
