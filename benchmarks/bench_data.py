"""Measures the data path: text to token files, documents to rows, batches ahead of training.

    python benchmarks/bench_data.py [--tokenizer PATH] [--only tokenisation|packing|loader]

One line per figure at the end: ``ratio NAME VALUE target VALUE``. Each part runs in a process of its own, on
one thread. Other work on the machine slows memory and caches down and so adds CPU seconds too, never takes
any away.

tokenisation   `preprocess` in one process, from corpus.jsonl.gz (see make_corpus.py) to whole token files,
               against ``datasets.map`` in one process, batched, over the same rows already loaded, which
               appends the end-of-text and drops the text: once with transformers' tokenizer, and once with
               our own `encode_texts`, whose tokenizing is then the same and only what is around it differs.
               The ids must agree. Each run has a tokenizer loaded anew, unmeasured: the words that it caches
               are not those of the run before. CPU seconds, in turn, 5 times: ratios are medians of the
               rounds', tokens per second are of the best round. Skipped where there is no OLMo 2 tokenizer.
packing        1 M documents of log-normal lengths (median 400 tokens, mean 820), as .bin, .idx and .learn on
               disk, sparse, to `PackedRows` of 4,096 by best fit. CPU seconds from opening the files to rows
               that can be taken; peak memory is the process's, with Python and torch in it.
loader         Steps of the tiny recipe's post-training (4 rows of 128, packed chats, the dense model: its
               cheapest step, and the dearest batches). First each step's batch is made and then used, one
               after the other: CPU seconds of the one over those of the other. Then with batches made ahead:
               seconds that training waits for them over seconds of all.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from side_by_side import figure, over

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus.jsonl.gz"
TOKENIZER = HERE.parent.parent / "shared/data/dolma2/tokenizer.json"
ROUNDS = 5
DOCUMENTS, SEQUENCE = 1_000_000, 4096
STEPS, WARM = 40, 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="tokenizer.json of OLMo 2")
    parser.add_argument("--only", choices=PARTS, help="one part, in this process")
    args = parser.parse_args()
    if args.only:
        with tempfile.TemporaryDirectory() as work:
            PARTS[args.only](Path(work), args.tokenizer)
        return
    # This process stays small: what a child's memory peaks at begins with what its parent had.
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))}
    figures, failed = [], []
    for part in PARTS:
        command = [sys.executable, __file__, "--only", part, "--tokenizer", str(args.tokenizer)]
        done = subprocess.run(
            command, env=os.environ | threads | paths, stdout=subprocess.PIPE, text=True, check=False
        )
        failed += [part] if done.returncode else []
        for line in done.stdout.splitlines():
            if line.startswith("ratio "):
                figures.append(line)
            else:
                print(line, flush=True)
    print(*figures, sep="\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(work: Callable[[], object]) -> tuple[float, object]:
    start = cpu_seconds()
    result = work()
    return cpu_seconds() - start, result


def tokenisation(work: Path, tokenizer: Path) -> None:
    if not tokenizer.is_file():
        print(f"tokenisation: skipped, no OLMo 2 tokenizer at {tokenizer} (--tokenizer PATH)")
        return
    import datasets
    import numpy as np

    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(CORPUS), split="train", cache_dir=str(work / "cache"))
    list(rows)  # the file is in memory
    makers = {"ours": _preprocess, "transformers": _map_transformers, "encode_texts": _map_encode_texts}
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    found = {}
    for number in range(ROUNDS):
        for name in list(makers)[
            :: 1 if number % 2 else -1
        ]:  # there and back: a machine that slows down favours nobody
            run, read = makers[name](rows, tokenizer, work / f"{name}-{number}")
            spent, made = timed(run)
            seconds[name].append(spent)
            found[name] = np.asarray(read(made))
        assert all(np.array_equal(ids, found["ours"]) for ids in found.values()), "the ids differ"
    tokens = len(found["ours"])
    for name, spent in seconds.items():
        rounds = " ".join(f"{s:.2f}" for s in spent)
        print(
            f"tokenisation: {name}: {tokens:,} tokens in CPU seconds {rounds}, median "
            f"{tokens / median(spent) / 1e6:.2f} M/s"
        )
    figure("tokenisation_million_tokens_per_cpu_second", tokens / min(seconds["ours"]) / 1e6, 0.4)
    figure("tokenisation_over_datasets_map", over(seconds["transformers"], seconds["ours"]), 1)
    same = median(over(seconds["encode_texts"], seconds["ours"]))
    print(
        f"over datasets.map with our own encoder inside, whose rows are read beforehand and not written: "
        f"{same:.3g}"
    )


def _preprocess(rows, tokenizer: Path, out: Path):
    from megatron_bar.data import preprocess
    from megatron_bar.data.sources import Source
    from megatron_bar.data.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    loaded.encode_texts(["warm"])
    preprocess.load_tokenizer = lambda path: loaded  # so that loading is not measured
    source = Source(path=CORPUS, kind="text")
    return lambda: preprocess.preprocess(
        source, CORPUS.parent, tokenizer, out
    ), lambda manifest: preprocess.prepared(out).ids


def _map_transformers(rows, tokenizer: Path, out: Path):
    from transformers import PreTrainedTokenizerFast

    # split_special_tokens: as ours, so that the ids agree where a text spells a special token.
    loaded = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer), eos_token="<|endoftext|>", split_special_tokens=True
    )
    loaded(["warm"])

    def encode(batch):
        found = loaded(
            batch["text"], add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )
        return {"input_ids": [[*ids, loaded.eos_token_id] for ids in found["input_ids"]]}

    return _map(rows, encode, out)


def _map_encode_texts(rows, tokenizer: Path, out: Path):
    from megatron_bar.data.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    loaded.encode_texts(["warm"])
    return _map(
        rows,
        lambda batch: {"input_ids": [[*ids, loaded.eos_id] for ids in loaded.encode_texts(batch["text"])]},
        out,
    )


def _map(rows, encode, out: Path):
    # The fingerprint is given: computing it would hash the tokenizer, which is theirs to lose.
    def run():
        return rows.map(
            encode,
            batched=True,
            remove_columns=["text"],
            cache_file_name=f"{out}.arrow",
            new_fingerprint=out.name,
        )

    return run, lambda mapped: mapped.with_format("arrow")[:]["input_ids"].combine_chunks().values


def packing(work: Path, tokenizer: Path) -> None:
    import numpy as np

    from megatron_bar.data.indexed import read_indexed, write_index
    from megatron_bar.data.packing import PackedRows

    lengths = (
        np.random.default_rng(0).lognormal(np.log(400), 1.2, DOCUMENTS).astype(np.int32).clip(2, 100_000)
    )
    write_index(work / "tokens.idx", lengths, np.dtype(np.int32))
    for name, size in (("tokens.bin", 4), ("tokens.learn", 1)):
        with (work / name).open("wb") as file:
            file.truncate(size * int(lengths.sum(dtype=np.int64)))
    seconds, rows = timed(lambda: PackedRows([("x", read_indexed(work / "tokens"))], SEQUENCE, pad_id=0))
    batch = rows.take([0, len(rows) - 1])
    assert batch.ids.shape == (2, SEQUENCE)
    assert len({document for n in range(len(rows)) for document in rows.row(n)}) == DOCUMENTS
    print(f"packing: {rows.documents:,} documents in {len(rows):,} rows, {rows.efficiency:.2%} filled")
    figure("packing_1M_documents_seconds", seconds, 60, at_most=True)
    figure(
        "packing_peak_GB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2, at_most=True
    )


def loader(work: Path, tokenizer: Path) -> None:
    from megatron_bar.data import world
    from megatron_bar.data.chat import ChatFormat
    from megatron_bar.data.indexed import read_indexed
    from megatron_bar.data.loader import Loader
    from megatron_bar.data.mixture import mix, prepare
    from megatron_bar.data.tokenizer import load_tokenizer
    from megatron_bar.parallel.state import distributed
    from megatron_bar.recipes import tiny
    from megatron_bar.training.objective import LanguageModelling
    from megatron_bar.training.trainer import Trainer
    from megatron_bar.weights.init import random_folder

    sizes = world.WorldSizes(pretrain=500, midtrain=10, sft_general=800, sft_domain=400, rlvr=10, test=10)
    world.build(work / "world", seed=0, sizes=sizes)
    place = work / "world/tokenizer"
    recipe, chats = tiny.recipe(), ChatFormat(load_tokenizer(place))
    random_folder(recipe.shape, work / "init", tokenizer=place, seed=0, embedding_std=recipe.embedding_std)
    stage = recipe.posttrain.stage
    sources = [tiny.GENERAL, tiny.chat("math")]
    files = [
        prepare(s, work / "world", chats, work / "tokens", seed=0, say=lambda line: None) for s in sources
    ]
    named = [(source.name, read_indexed(file)) for source, file in zip(sources, files, strict=True)]
    rows = mix(named, packing=stage.packing, length=stage.sequence, pad_id=chats.tokenizer.pad_id).parts
    steps = 2 * STEPS + WARM
    feed = Loader(
        rows,
        global_batch=stage.batch,
        micro_batch=stage.micro_batch,
        data_rank=0,
        data_size=1,
        seed=0,
        steps=steps,
    )
    with distributed():
        trainer, objective = Trainer(work / "init", stage, steps=steps), LanguageModelling()
        making, using = [], []
        for number in range(WARM + STEPS):
            spent, step = timed(lambda number=number: feed.step(number))
            making.append(spent)
            using.append(timed(lambda step=step: trainer.step(step.micro_batches, objective))[0])
        stream, waits = feed.ahead(WARM + STEPS), []
        start = time.perf_counter()
        for _ in range(STEPS):
            asked = time.perf_counter()
            step = next(stream)
            waits.append(time.perf_counter() - asked)
            trainer.step(step.micro_batches, objective)
        whole = time.perf_counter() - start
    cpu = sum(making[WARM:]), sum(using[WARM:])
    made, used = (1e3 * seconds / STEPS for seconds in cpu)
    print(
        f"loader: CPU of a batch {made:.2f} ms, of a step {used:.1f} ms; waited {sum(waits):.3f} s of "
        f"{whole:.2f} s"
    )
    figure("loader_share_of_tiny_step_percent", 100 * sum(waits) / whole, 2, at_most=True)
    figure("loader_cpu_over_tiny_step_cpu_percent", 100 * cpu[0] / cpu[1], 2, at_most=True)


PARTS: dict[str, Callable[[Path, Path], None]] = {
    "tokenisation": tokenisation,
    "packing": packing,
    "loader": loader,
}

if __name__ == "__main__":
    main()
