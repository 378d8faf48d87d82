"""A disk that is full at every page of a save: one line and a status, the older checkpoint as it was, and no
leftovers.

The disk is a tmpfs in a user and mount namespace of the test's own, filled up until a chosen number of pages
is free.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from distributed import start_process
from tiny_fit import finish, left, logs, make_source, train

PAGE, SIZE = 4096, 1 << 20


def in_fork(source: Path, folder: Path, output: Path, kill_when: Path | None = None) -> tuple[int, str]:
    """Status and output of a run; killed once ``kill_when`` is there."""
    pid = os.fork()
    if pid == 0:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        try:
            train(source, folder)
        except SystemExit as end:
            if isinstance(end.code, str):
                os.write(2, f"{end.code}\n".encode())
            os._exit(1 if isinstance(end.code, str) else end.code)
        os._exit(70)
    while kill_when is not None and not kill_when.exists():
        pass
    if kill_when is not None:
        os.kill(pid, 9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.read_text()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill(disk: Path, pages: int) -> None:
    """Until so many pages are free."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE))
        except OSError:
            file.truncate(max(0, file.tell() - pages * PAGE))


def on_a_small_disk(source: Path, root: Path, wanted: list[int] | None) -> None:
    """Writes what happened with each number of free pages to ``report``; None: every number until nothing
    fails."""
    identity = os.getuid(), os.getgid()
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    for kind, number in zip(("uid", "gid"), identity, strict=True):
        Path(f"/proc/self/{kind}_map").write_text(f"0 {number} 1")
    disk, saved, found = root / "disk", root / "saved", []
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", disk], check=True)
    folder, hidden = disk / "run", ".out.checkpoints"
    folder.mkdir()
    shutil.copytree(source, disk / "source")
    in_fork(disk / "source", folder, root / "output", folder / hidden / "step-00000002")
    for old in sorted((folder / hidden).iterdir()):
        if old.name != "step-00000002":
            shutil.rmtree(old)
    shutil.copytree(folder, saved)
    shutil.copytree(logs(folder), logs(saved))
    number = 0
    while True:
        pages = number if wanted is None else wanted[number]
        shutil.rmtree(folder)
        shutil.copytree(saved, folder)
        shutil.rmtree(logs(folder), ignore_errors=True)
        logs(folder).symlink_to(shutil.copytree(logs(saved), root / f"logs-{pages}"))
        fill(disk, pages)
        status, said = in_fork(disk / "source", folder, root / "output")
        whole, partial = {}, []
        for path in (folder / hidden).glob("*"):
            partial += [path.name] if path.name.startswith(".") else []
            whole |= {path.name: contents(path)} if not path.name.startswith(".") else {}
        intact = "step-00000002" not in whole or whole["step-00000002"] == contents(
            saved / hidden / "step-00000002"
        )
        (disk / "ballast").unlink()
        again = in_fork(disk / "source", folder, root / "output")[0] if status else 0
        same = {name: data.hex() for name, data in left(folder).items()} if again == 0 else {}
        logs(folder).unlink()
        error = [line for line in said.splitlines() if line.startswith("error: ")]
        found.append([pages, status, error, len(whole), partial, intact, same])
        number += 1
        if status == 0 or (wanted is not None and number == len(wanted)):
            break
    (root / "report").write_text(json.dumps(found))


def check(source: Path, root: Path, wanted: list[int] | None) -> list[str]:
    """The lines in which the runs ended."""
    if subprocess.run(["unshare", "-Um", "true"], check=False, capture_output=True).returncode:
        pytest.skip("namespaces are not allowed here")
    assert finish(source, root / "straight")[0] == 0
    expected = {name: data.hex() for name, data in left(root / "straight").items()}
    process = start_process(on_a_small_disk, source, root, wanted, output=root / "log")
    process.join()
    assert process.exitcode == 0, (root / "log").read_text()
    lines = []
    for pages, status, error, whole, partial, intact, same in json.loads((root / "report").read_text()):
        assert same == expected, pages
        if status:
            assert status == 1 and len(error) == 1 and whole >= 1 and not partial and intact, (
                pages,
                status,
                error,
                partial,
            )
            lines += error
    return lines


SAVE = re.compile(
    r"error: \S+/\.out\.checkpoints/\.step-\d{8}\.partial/\S+: could not write \d+ bytes: No space left on "
    r"device"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("source") / "two")


def test_a_full_disk_during_a_save(source, tmp_path):
    lines = check(source, tmp_path, [0, 2, 4])
    assert len(lines) == 3 and all(SAVE.fullmatch(line) for line in lines), lines


@pytest.mark.faults
def test_a_disk_full_at_every_page(source, tmp_path, record_property):
    lines = check(source, tmp_path, None)
    saves = [line for line in lines if SAVE.fullmatch(line)]
    assert len(saves) >= 8
    assert all(re.search(r"error: \S+: .*(\d+ bytes|No space left)", line) for line in lines), lines
    record_property(
        "figure", f"disk full during save: {len(lines)} points ({len(saves)} in a checkpoint), all recovered"
    )


def test_a_full_disk_under_the_logs_is_told_in_one_line(source, tmp_path):
    """/dev/full takes nothing, with the error of a full disk."""
    folder = tmp_path / "run"
    lines = logs(folder) / "metrics.jsonl"
    lines.parent.mkdir()
    lines.symlink_to("/dev/full")
    status, said = finish(source, folder)
    assert status == 1
    assert [line for line in said.splitlines() if "rror" in line] == [
        f"error: {lines}: could not be written: No space left on device"
    ]
    assert not (folder / "out").exists()
    lines.unlink()
    assert finish(source, folder)[0] == 0
