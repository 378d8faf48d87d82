"""Merges of dense folders against mergekit: seconds, memory and what comes out.

    python benchmarks/bench_mergekit.py [--only linear_bfloat16 ties_float32 ...] [--rounds 5]

A base and two fine-tunes of it, of SmolLM2-135M's shape on random weights, bf16 (0.3 GB each) and fp32. Each
tool is a process of its own, as a user starts it; nobody finds an input in memory; turns alternate. Peak
memory is anonymous memory, watched as in beside_cp.py. Ours reads back what it wrote and compares hashes;
mergekit does not.

linear    the mean of all three
ties      density 0.2, the mean of those that agree in sign
dare      density 0.2, the mean of the deltas (mergekit: dare_linear, which scales what is left to the old
          sum of magnitudes, and not by 1 / density)
mixture   the FFNs of all three as experts, all else the base's, router rows drawn (tools/merge_dense.py --how
          btx; mergekit-moe, gate_mode random)

What both wrote is compared: value by value but for what rounds; in ties all but the entries of which rounding
decides, of which bf16 has many (of deltas as large as the last one that is kept mergekit keeps some, we keep
all; where deltas cancel mergekit elects plus, we nothing); dare, whose draws differ, by how many values moved
and how far, and a mixture bit by bit without its routers, as transformers reads it.

`make bench` installs mergekit into .venv-mergekit, beside what .venv has; without it nothing is measured.
"""

import argparse
import json
import os
import shutil
import site
import sys
import tempfile
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from statistics import median

import torch
from beside_cp import ROOT, forget, run, tool
from safetensors import safe_open
from side_by_side import figure, over
from smollm2_shape import LAYERS, VOCABULARY, save_model

PACKAGES = ROOT / ".venv-mergekit"
DENSITY, ROUNDS, MOVED = 0.2, 5, 0.01
OURS = {"linear": "mean", "ties": "ties", "dare": "dare"}
COMBINED = ("task_arithmetic", "linear", "ties", "dare_linear")
"""mergekit's methods that this project has, too."""
DTYPES = {"bfloat16": 2.0**-6, "float32": 2.0**-20}
"""Share of a value that a few roundings are, the peer's of its sums among them."""
CASES = {f"{method}_{dtype}": (method, dtype) for method, dtype in product((*OURS, "mixture"), DTYPES)}
Folders = dict[str, Path]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    args = parser.parse_args()
    for folder in PACKAGES.glob("lib/python*/site-packages"):
        site.addsitedir(str(folder))  # at the end: what .venv has goes before it
    try:
        from mergekit.merge_methods import registered_methods
    except ImportError as error:
        print(f"nothing measured: {error}; make .venv-mergekit/.ready")
        return
    import transformers

    os.environ["TQDM_DISABLE"] = "1"
    transformers.utils.logging.disable_progress_bar()
    alone = [method.spec.name for method in registered_methods() if method.spec.name not in COMBINED]
    print(f"mergekit alone has {', '.join(alone)}")
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        for dtype in DTYPES:
            given = [name for name in args.only if CASES[name][1] == dtype]
            if given:
                folders = save_inputs(work / dtype, dtype, args.layers, args.vocabulary)
            for name in given:
                measure(name, folders, work, args.rounds)
            shutil.rmtree(work / dtype, ignore_errors=True)


def save_inputs(place: Path, dtype: str, layers: int, vocabulary: int) -> Folders:
    """A base, and two models every value of which has moved a little."""
    from transformers import AutoModelForCausalLM

    base = place / "base"
    save_model(base, experts=0, dtype=dtype, layers=layers, vocabulary=vocabulary)
    folders = {"base": base}
    for seed, name in enumerate(("one", "other"), 1):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for param in model.parameters():
                param += MOVED * torch.randn(param.shape, generator=generator)
        folders[name] = place / name
        model.save_pretrained(folders[name])
        shutil.copy(base / "tokenizer.json", folders[name])
        shutil.copy(base / "tokenizer_config.json", folders[name])
    return folders


def measure(name: str, folders: Folders, work: Path, rounds: int) -> None:
    method, dtype = CASES[name]
    config = work / "config.yml"
    config.write_text(json.dumps(mergekit_config(method, folders, dtype)))  # which is YAML
    outs = {"ours": work / "ours", "mergekit": work / "mergekit"}
    commands = {
        "ours": our_command(method, folders, outs["ours"]),
        "mergekit": (*mergekit_command(method), str(config), str(outs["mergekit"])),
    }
    seconds: dict[str, list[float]] = {way: [] for way in outs}
    peaks: dict[str, list[int]] = {way: [] for way in outs}
    for _ in range(rounds):
        for way, command in commands.items():
            shutil.rmtree(outs[way], ignore_errors=True)
            forget(folders.values())
            ran = run(command)
            seconds[way].append(ran.seconds)
            peaks[way].append(ran.peak)
    same = compare(method, dtype, folders, outs)
    took = ", ".join(f"{way} {median(seconds[way]):.1f} s and {max(peaks[way]) / 1e6:.0f} MB" for way in outs)
    print(f"{name}: {took}; {same}")
    figure(f"merge_{name}_over_mergekit", over(seconds["mergekit"], seconds["ours"]), 1)
    share = max(peaks["ours"]) / max(peaks["mergekit"])
    figure(f"merge_{name}_peak_of_mergekit", share, 1, at_most=True)
    for out in outs.values():
        shutil.rmtree(out)


def our_command(method: str, folders: Folders, out: Path) -> tuple[str, ...]:
    how = ["--how", "btx", "--shared-from", "base"]
    if method != "mixture":
        how = ["--how", "mean", "--shared", OURS[method], "--density", str(DENSITY)]
    given = [f"--expert={name}={path}" for name, path in folders.items()]
    return tool("merge_dense", *given, *how, "--out", out)


def mergekit_command(method: str) -> tuple[str, ...]:
    """What runs it by this interpreter, which finds its packages behind its own."""
    paths = [str(folder) for folder in PACKAGES.glob("lib/python*/site-packages")]
    script, quiet = ("moe", "") if method == "mixture" else ("run_yaml", "sys.argv.append('--quiet'); ")
    code = f"import site, sys; [site.addsitedir(path) for path in {paths}]; {quiet}"
    return (sys.executable, "-c", f"{code}from mergekit.scripts.{script} import main; main()")


def mergekit_config(method: str, folders: Folders, dtype: str) -> dict:
    """The same merge in its words."""
    base, *tuned = map(str, folders.values())
    if method == "linear":
        models = [{"model": path, "parameters": {"weight": 1.0}} for path in (base, *tuned)]
        return {"merge_method": "linear", "models": models, "dtype": dtype}
    if method == "mixture":
        experts = [{"source_model": path} for path in (base, *tuned)]
        return {
            "base_model": base,
            "experts": experts,
            "gate_mode": "random",
            "experts_per_token": len(experts),
            "dtype": dtype,
        }
    weight = 1.0 if method == "ties" else 1 / len(tuned)
    parameters = {"weight": weight, "density": DENSITY}
    return {
        "merge_method": "ties" if method == "ties" else "dare_linear",
        "base_model": base,
        "models": [{"model": path, "parameters": parameters} for path in tuned],
        "dtype": dtype,
    }


def compare(method: str, dtype: str, folders: Folders, outs: Folders) -> str:
    """Raises unless both wrote the same model, as far as the method says which; tells how far apart."""
    if method == "mixture":
        return compare_mixtures(outs)
    apart = total = 0
    for name, base, *tuned, ours, theirs in tensors([*folders.values(), *outs.values()]):
        if method == "dare":
            compare_draws(name, base, ours, theirs)
            continue
        largest = torch.stack([base, *tuned]).abs().amax(0)
        near = (ours - theirs).abs() <= DTYPES[dtype] * largest
        if method == "ties":
            near |= on_the_edge(base, tuned, DTYPES[dtype])
        apart += int((~near).sum())
        total += near.numel()
    if method == "dare":
        return "as many values moved as far"
    assert not apart, f"{apart} of {total} values differ"
    return f"{total:,} values are the same"


def on_the_edge(base, tuned: list, rounding: float):
    """Where it hangs on rounding whether a delta is kept, or which sign is elected."""
    edge = torch.zeros_like(base, dtype=torch.bool)
    total = torch.zeros_like(base)
    largest = torch.zeros_like(base)
    for other in tuned:
        delta = other - base
        count = max(1, int(DENSITY * delta.numel()))
        least = delta.abs().flatten().kthvalue(delta.numel() - count + 1).values
        edge |= (delta.abs() - least).abs() <= rounding * least
        kept = delta * (delta.abs() >= least)
        total += kept
        largest = torch.maximum(largest, kept.abs())
    return edge | ((total.abs() <= rounding * largest) & (largest > 0))


def compare_draws(name: str, base, ours, theirs) -> None:
    """Raises unless, of many values, as many moved as far."""
    if base.numel() < 1e5:
        return
    moved = [(values != base).double().mean().item() for values in (ours, theirs)]
    far = [(values - base).norm().item() for values in (ours, theirs)]
    assert abs(moved[0] - moved[1]) <= 0.01, f"{name}: shares of {moved} moved"
    assert abs(far[0] - far[1]) <= 0.02 * far[1], f"{name}: moved by {far}"


def tensors(folders: list[Path]) -> Iterable[tuple]:
    """Name and, in fp32, values of each tensor in all folders."""
    opened = []
    for folder in folders:
        files = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        opened.append({name: file for file in files for name in file.keys()})
    for name in opened[0]:
        yield name, *(files[name].get_tensor(name).float() for files in opened)


def compare_mixtures(outs: Folders) -> str:
    from transformers import AutoModelForCausalLM

    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict() for out in outs.values()
    )
    assert ours.keys() == theirs.keys()
    differ = [name for name in ours if ".gate." not in name and not torch.equal(ours[name], theirs[name])]
    assert not differ, f"{differ} differ"
    return "the same bits but for the routers"


if __name__ == "__main__":
    main()
