"""benchmarks/big_folders.py at a tiny shape: every step on a disk of just the size that it asks for, and what
it measures by."""

import contextlib
import io
import json
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from folders import load_tensors, whole
from scripts import ENV, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import big_folders
import made_folders
from beside_cp import CP, Case, Ran, run
from big_folders import CASES, Job, plan
from made_folders import SHAPES, dense, hollow, nbytes, trained

from megatron_bar.errors import BarError
from megatron_bar.experts.artifact import extract
from megatron_bar.weights.groups import MIDTRAIN, ParamGroup

TINY = SHAPES["tiny"]
SCRIPT = str(ROOT / "benchmarks" / "big_folders.py")
PUBLISHED = {0: 7_298_011_136, 2: 11_626_795_008}
"""Parameters of BAR's folders by experts, of a vocabulary of 100,278; the folders have 100,352 rows."""


def page(nbytes: int) -> int:
    """Rounded up, as the size of a tmpfs is."""
    return -(-nbytes // 4096) * 4096


def script(work: Path, *arguments: str) -> tuple[str | int, str]:
    """How the script ends, called in this process, whose imports it then has, and its stdout."""
    sys.argv = [SCRIPT, "--shape", "tiny", "--repeats", "1", "--work", str(work), *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as ended:
        runpy.run_path(SCRIPT, run_name="__main__")
    return ended.value.code, out.getvalue()


def on_disks(root: Path, runs: dict[str, tuple[int, list[str]]]) -> None:
    """Writes to ``report`` how each run ends on a disk of its number of bytes, and what it leaves there; in
    namespaces of its own."""
    found = {}
    for name, (size, arguments) in runs.items():
        disk = root / name
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
        found[name] = [*script(disk, *arguments), [path.name for path in disk.iterdir()]]
    (root / "report").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, tuple[str | int, str, list[str]]]:
    """How every step ends on a disk of just the size that it asks for, and all of them on too small a one."""
    if subprocess.run(["unshare", "-Um", "true"], check=False, capture_output=True).returncode:
        pytest.skip("namespaces are not allowed here")
    root = tmp_path_factory.mktemp("disks")
    runs = {step: (page(Job(step, "tiny").need), ["--only", step]) for step in CASES}
    runs["too small"] = (page(Job("inspect", "tiny").need), [])
    code = f"import test_big_folders as test; test.on_disks(test.Path({str(root)!r}), {runs!r})"
    command = ["unshare", "-Urm", sys.executable, "-c", code]
    env = ENV | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads((root / "report").read_text())


@pytest.mark.parametrize("step", CASES)
def test_a_step_runs_on_a_disk_of_just_its_size(step, ended):
    status, out, left = ended[step]
    assert (status, left) == (0, [])
    ratios = dict(re.findall(r"^ratio (\S+) (\S+) target", out, re.MULTILINE))
    name = f"tiny_{step}" + "_of_5" * (step == "merge")
    assert ratios.keys() == {f"{name}_over_cp", f"{name}_peak_anonymous_GB"}
    assert all(0 < float(value) for value in ratios.values())
    assert float(ratios[f"{name}_peak_anonymous_GB"]) < 1


def test_a_disk_too_small_is_refused_before_anything_is_written(ended):
    said, out, left = ended["too small"]
    assert (out, left) == ("", [])
    need, size = Job("merge", "tiny").need, page(Job("inspect", "tiny").need)
    wanted = f"{need / 1e6:.3g} MB free for merge of tiny, got {size / 1e6:.3g} MB"
    assert re.fullmatch(
        rf"error: \S+/too small: disk expected with {wanted}; would fit: --only inspect", said
    )


def test_a_larger_shape_on_a_small_disk():
    """Merges as many as fit, and five of a smaller shape."""
    gb = 10**9
    steps = ["branch", "merge"]
    jobs = plan(steps, "olmo2_7b", Path("place"), 55 * gb, keep=False)
    assert jobs == [Job("branch", "olmo2_7b"), Job("merge", "olmo2_1b", stands_for="olmo2_7b")]
    jobs = plan(steps, "olmo2_7b", Path("place"), 90 * gb, keep=False)
    smaller = Job("merge", "olmo2_1b", stands_for="olmo2_7b")
    assert jobs[1:] == [Job("merge", "olmo2_7b", experts=2), smaller]
    assert plan(["merge"], "olmo2_7b", Path("place"), 140 * gb, keep=False) == [Job("merge", "olmo2_7b")]
    with pytest.raises(
        BarError,
        match=r"^place: .* 53 GB free for branch of olmo2_7b, got 50 GB; would fit: --only inspect merge$",
    ):
        plan(steps, "olmo2_7b", Path("place"), 50 * gb, keep=False)
    with pytest.raises(BarError, match=r"79.1 GB free for all that --keep keeps .*\(without --keep\)$"):
        plan(steps, "olmo2_7b", Path("place"), 55 * gb, keep=True)


def test_bytes_are_the_published_ones():
    rows = 2 * (100_352 - 100_278) * 4096
    for experts, parameters in PUBLISHED.items():
        config = SHAPES["olmo2_7b"]
        config = config.with_experts(experts) if experts else config
        assert nbytes(config) == 2 * (parameters + rows)


def test_extrapolation_goes_by_bytes():
    dense, ffn = 2 * (PUBLISHED[0] + 74 * 8192), 2 * (PUBLISHED[2] - PUBLISHED[0])
    moved = dense  # in place of the anchor's FFN the domain expert's, and routers, which count twice
    total = dense + ffn + 4 * moved + dense + 4 * ffn
    case = Case("merge of 5", (), (), read=total // 8, written=total // 8)
    line = big_folders.extrapolated(
        case, {CP: [Ran(10, 0, 0)], "tool": [Ran(20, 0, 0)]}, Job("merge", "olmo2_1b", stands_for="olmo2_7b")
    )
    assert "EXTRAPOLATED, not measured: merge of 5 at olmo2_7b, 4.00 times the bytes: 80 s, cp 40 s;" in line


def test_what_a_process_takes(tmp_path):
    """Memory of its children counts, mapped files do not; written is what goes to the disk."""
    mib = 1 << 20
    fill = "import time; held = b'x' * (150 << 20); time.sleep(0.2)"
    grandchild = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {fill!r}])"
    assert 150 * mib < run([sys.executable, "-c", grandchild]).peak < 200 * mib
    file = tmp_path / "file"
    ran = run(["dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=150", "conv=fsync", "status=none"])
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True)
    assert kind.stdout == "tmpfs\n" or 150 * mib <= ran.written < 155 * mib
    mapped = (
        f"import mmap, time; f = open({str(file)!r}, 'rb'); "
        "m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); sum(m[::4096]); time.sleep(0.2)"
    )
    assert 0 < run([sys.executable, "-c", mapped]).peak < 50 * mib
    with pytest.raises(BarError, match=r"^bash -c 'exit 3': expected status 0, got 3$"):
        run(["bash", "-c", "exit 3"])


def test_made_folders(tmp_path):
    config = made_folders.replace(TINY, num_layers=1)
    base = big_folders.branched(tmp_path, config)
    expert = trained(base, tmp_path / "expert", 3, MIDTRAIN)
    whole(dense(tmp_path / "dense", config, seed=1))
    whole(expert)
    before, after = load_tensors(base), load_tensors(expert)
    assert all(bool(tensor.isfinite().all()) for tensor in (*before.values(), *after.values()))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == {name for name in before if ".experts.1." in name or name.endswith("mlp.gate.weight")}
    hollow(base)
    extract(expert, base, tmp_path / "artifact")
    (file,) = base.glob("*.safetensors")
    assert file.stat().st_blocks * 512 < 2e5 < file.stat().st_size
    # What is read of a hollow folder is refused, but for what was kept.
    hollow(expert, ParamGroup.ROUTER)
    kept = load_tensors(expert)
    assert {name for name in kept if kept[name].equal(after[name])} == {"model.layers.0.mlp.gate.weight"}
    base = big_folders.branched(tmp_path / "again", config)
    with pytest.raises(
        BarError, match=r"expert/model.safetensors: .* changed since its manifest was written"
    ):
        extract(expert, base, tmp_path / "none")


def test_folders_are_removed_unless_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    work = tmp_path / "work"
    command = [sys.executable, SCRIPT, "--shape", "tiny", "--only", "inspect", "--work", str(work)]
    with subprocess.Popen(
        command, env=ENV, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        while not (work / "tiny-inspect").exists():
            assert child.poll() is None
            time.sleep(0.01)
        child.terminate()
        assert child.communicate() == ("", "error: terminated\n")
    assert list(tmp_path.iterdir()) == []
    handler = signal.getsignal(signal.SIGTERM)
    assert script(work, "--only", "inspect", "--keep")[0] == 0
    whole(work / "tiny-inspect" / "dense")
    said = f"error: {work}: expected a new or empty folder to write to, got one that is not empty"
    assert script(work, "--only", "inspect") == (said, "")
    signal.signal(signal.SIGTERM, handler)
