"""The data of the recipe smollm2: four generated domains, items of published benchmarks to measure by, and
the anchor's own answers as general data. Whatever of a benchmark is found in what is learnt is an error.

    python examples/real_data.py --anchor runs/real/anchor --packages runs/real/packages --out runs/real/data

Run again, it goes on. The benchmarks' items are read from packages (megatron_bar/data/smol/real.py); nothing
in them is run. What was compared with what is in OUT/overlap.json.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_bar import cli
from megatron_bar.data import smol
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.overlap import KnownItems
from megatron_bar.data.smol import PROMPTS, gym, real
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError, writing
from megatron_bar.evaluation.generative import load_model
from megatron_bar.evaluation.own_answers import Drawing, write_answers
from megatron_bar.evaluation.results import model_hash
from megatron_bar.models.sampler import Sampler
from megatron_bar.parallel.state import ParallelConfig, distributed
from megatron_bar.recipes import smollm2
from megatron_bar.verifiers import verify
from megatron_bar.weights.hf_config import read_config

MEMORY = 17
"""GB that the largest stage has been seen to take, the system's included."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--anchor", type=Path, required=True, metavar="HF", help="the instruct model")
    parser.add_argument(
        "--packages", type=Path, required=True, metavar="DIR", help="where they are installed"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DATA", help="the recipe's data folder")
    parser.add_argument("--small", action="store_true", help="for the small recipe, smollm2:small")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    args = parser.parse_args()
    size = smollm2.SMALL if args.small else smollm2.FULL
    require_room(args.out, size.disk)
    require_own(args)
    if read_config(args.anchor).model_type != "llama":
        raise BarError(f"{args.anchor}: expected a Llama, got {read_config(args.anchor).model_type}")
    items = KnownItems()
    for name, benchmark in real.REAL.items():
        items.add(name, map(benchmark.text, benchmark.items(args.packages)))
    if not args.out.exists():
        make(args, size, items)
    answer(args, size, items)


def made_of(args: argparse.Namespace) -> dict:
    return {"seed": args.seed, "small": args.small, "anchor": model_hash(args.anchor)}


def require_own(args: argparse.Namespace) -> None:
    """Raises where the folder to write is another's, or of another seed, size or anchor."""
    if not args.out.exists():
        return
    try:
        found = json.loads((args.out / "overlap.json").read_text(encoding="utf-8"))["of"]
    except (OSError, ValueError, LookupError, TypeError):
        raise BarError(f"{args.out}: expected a new folder, or one that this made, got another") from None
    if found != (wanted := made_of(args)):
        raise BarError(f"{args.out}: expected data of {wanted}, found those of {found}; name another folder")


def require_room(out: Path, disk: int) -> None:
    """Raises where the run would end in the middle for lack of memory or disk."""
    place = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free / 1e9
    if free < disk:
        raise BarError(f"{place}: expected {disk} GB of free disk for a whole run, found {free:.0f}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if memory < MEMORY:
        raise BarError(f"expected {MEMORY} GB of memory, this machine has {memory:.1f}")


def make(args: argparse.Namespace, size: smollm2.Size, items: KnownItems) -> None:
    """Writes all but the answers, once none of it is found among the benchmarks' items."""
    with writing(args.out):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=args.out.parent, prefix=f".{args.out.name}.") as place:
            partial = Path(place, args.out.name)
            texts = fill(partial, args, size, items)
            partial.rename(args.out)
    counts = ", ".join(f"{name} {count:,}" for name, count in items.counts.items())
    print(f"none of the items ({counts}) is in any of {sum(texts.values()):,} texts")
    if not gym.is_there():
        print("note: reasoning-gym is not installed; all tasks of mathematics come from templates")


def fill(out: Path, args: argparse.Namespace, size: smollm2.Size, items: KnownItems) -> dict[str, int]:
    """Returns the number of texts that were compared, by file."""
    smol.build(out, seed=args.seed, sizes=size.data)
    learnt = [path for path in sorted(out.glob("*.jsonl")) if not path.name.startswith("test_")]
    texts = {path.name: without_overlap(path, items) for path in learnt}
    more = {"count": size.real, "whole": size.whole, "seed": args.seed}
    for name, tasks in real.tests(args.packages, **more):
        (out / f"test_{name}.jsonl").write_text("".join(f"{json.dumps(task)}\n" for task in tasks))
    compared = {"of": made_of(args), "items": items.counts, "texts": texts, "found": 0}
    (out / "overlap.json").write_text(json.dumps(compared, indent=1))
    return texts


def without_overlap(path: Path, items: KnownItems) -> int:
    """Returns the number of texts in a file; raises if one holds an item."""
    count = 0
    for number, line in enumerate(path.open(encoding="utf-8"), 1):
        row = json.loads(line)
        for text in [row["text"]] if "text" in row else [part["content"] for part in row["messages"]]:
            count += 1
            if found := items.found(text):
                raise BarError(
                    f"{path.name}:{number}: expected nothing of a test set, found item {found}: {text!r:.120}"
                )
    return count


def answer(args: argparse.Namespace, size: smollm2.Size, items: KnownItems) -> None:
    """Writes the anchor's answers to the prompts that have none yet; those with an item in them are left
    out."""
    missing = {
        path: path.with_name(path.name.removeprefix(PROMPTS))
        for path in sorted(args.out.glob(f"{PROMPTS}*.jsonl"))
        if not path.with_name(path.name.removeprefix(PROMPTS)).exists()
    }
    if not missing:
        return
    with distributed():
        chats = ChatFormat(load_tokenizer(args.anchor), smollm2.TEMPLATE)
        sampler = Sampler(
            load_model(args.anchor, ParallelConfig()), eos_ids=chats.stop_ids, pad_id=chats.tokenizer.pad_id
        )
        for prompts, out in missing.items():
            harmless = "harmless" in out.name

            def keep(answer: str, harmless: bool = harmless) -> bool:
                return items.found(answer) is None and (
                    not harmless or verify("safety", answer, "comply") == 1
                )

            # No longer than a test of it lets an answer be: more of them at the same cost.
            most = min(size.answer, smollm2.MOST["safety"]) if harmless else size.answer
            drawing = Drawing(max_new_tokens=most, least_words=1, seed=args.seed)  # a letter is one
            write_answers(
                sampler,
                chats,
                prompts,
                out,
                model=model_hash(args.anchor),
                drawing=drawing,
                keep=keep,
                say=lambda line: print(line, flush=True),
            )


if __name__ == "__main__":
    cli.run(main)
