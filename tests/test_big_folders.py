"""benchmarks/big_folders.py at a tiny shape: every step on a disk of just the size that it asks for, and what
it measures by."""

import os
import re
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
SCRIPT = (sys.executable, str(ROOT / "benchmarks" / "big_folders.py"), "--shape", "tiny", "--repeats", "1")
PUBLISHED = {0: 7_298_011_136, 2: 11_626_795_008}
"""Parameters of BAR's folders by experts, with a vocabulary of 100,278 where the folders have 100,352 rows."""


def on_a_disk(nbytes: int, place: Path, *arguments: str) -> tuple[int, str, str, list[str]]:
    """Status, stdout, stderr of the script, and what it left on a file system of ``nbytes``."""
    if subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("namespaces are not allowed here")
    place.mkdir()
    script = 'mount -t tmpfs -o size="$0" tmpfs "$1"; shift; "$@"; code=$?; ls -A "$PLACE" > "$PLACE.left"; exit $code'
    command = ["unshare", "-Urm", "bash", "-c", script, str(nbytes), str(place), *SCRIPT, "--work", str(place)]
    env = ENV | {"PLACE": str(place)}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=env, timeout=300, check=False)
    return done.returncode, done.stdout, done.stderr, Path(f"{place}.left").read_text().split()


def page(nbytes: int) -> int:
    """Rounded up, as the size of a tmpfs is."""
    return -(-nbytes // 4096) * 4096


@pytest.mark.parametrize("step", CASES)
def test_a_step_runs_on_a_disk_of_just_its_size(step, tmp_path):
    status, out, err, left = on_a_disk(page(Job(step, "tiny").need), tmp_path / "disk", "--only", step)
    assert (status, err, left) == (0, "", []), (out, err)
    ratios = dict(re.findall(r"^ratio (\S+) (\S+) target", out, re.MULTILINE))
    name = f"tiny_{step}" + "_of_5" * (step == "merge")
    assert ratios.keys() == {f"{name}_over_cp", f"{name}_peak_anonymous_GB"}
    assert all(0 < float(value) for value in ratios.values())
    # Torch alone has a hundredth of this, and no input is in it whole.
    assert float(ratios[f"{name}_peak_anonymous_GB"]) < 1


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path):
    size = page(Job("inspect", "tiny").need)
    status, out, err, left = on_a_disk(size, tmp_path / "disk")
    assert (status, out, left) == (1, "", [])
    assert err.count("\n") == 1
    need = f"{Job('merge', 'tiny').need / 1e6:.3g} MB free for merge of tiny"
    assert f"disk expected with {need}, got {size / 1e6:.3g} MB; would fit: --only inspect\n" in err


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
    with pytest.raises(BarError, match=r"^place: .* 53 GB free for branch of olmo2_7b, got 50 GB; would fit: --only inspect merge$"):
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
    line = big_folders.extrapolated(case, {CP: [Ran(10, 0, 0)], "tool": [Ran(20, 0, 0)]}, Job("merge", "olmo2_1b", stands_for="olmo2_7b"))
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
        f"import mmap, time; f = open({str(file)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); "
        "sum(m[::4096]); time.sleep(0.2)"
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
    with pytest.raises(BarError, match=r"expert/model.safetensors: .* changed since its manifest was written"):
        extract(expert, base, tmp_path / "none")


def test_folders_are_removed_unless_kept(tmp_path):
    command = [*SCRIPT, "--only", "inspect", "--work", str(tmp_path / "work")]
    with subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stopped:
        while not (tmp_path / "work" / "tiny-inspect").exists():
            assert stopped.poll() is None
            time.sleep(0.01)
        os.kill(stopped.pid, signal.SIGTERM)
        assert stopped.communicate()[1] == "error: terminated\n"
    assert list(tmp_path.iterdir()) == []
    subprocess.run([*command, "--keep"], env=ENV, capture_output=True, check=True)
    whole(tmp_path / "work" / "tiny-inspect" / "dense")
    again = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert again.stderr == f"error: {tmp_path}/work: expected a new or empty folder to write to, got one that is not empty\n"
