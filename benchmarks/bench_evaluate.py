"""Evaluation by generation: our sampler, as it answers published benchmarks, against lm-eval's transformers
backend, on the same folder and chats.

168 prompts, 24 of each of the toy's tests, greedy, at most 64 new tokens, both end to end: chat template,
tokens, answers, text; ours are stored too. The folder is runs/tiny/final where the demo has made it, else a random model of the
same shape with five experts. lm-eval takes the batch size that is fastest for it out of 64 and all at once;
ours has the tool's 64 slots. fp32, one process, one thread; alternated, medians. The share of equal answers
is shown and checked.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from side_by_side import figure, over
from toy_items import toy_items

from megatron_bar.evaluation.benchmarks.answers import AnswerFile
from megatron_bar.evaluation.benchmarks.asking import ask_sampler
from megatron_bar.evaluation.benchmarks.items import Items
from megatron_bar.models.sampler import Sampler

EACH, NEW, ROUNDS = 24, 64, 5
BATCHES = (64, 168)
RUN = Path("runs/tiny")


def main() -> None:
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from megatron_bar.data.chat import ChatFormat
    from megatron_bar.data.tokenizer import load_tokenizer
    from megatron_bar.evaluation.generative import load_model
    from megatron_bar.parallel.state import ParallelConfig, distributed
    from megatron_bar.weights.hf_config import read_config

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary, distributed():
        folder, world = (
            (RUN / "final", RUN / "world") if (RUN / "final").is_dir() else random_run(Path(temporary))
        )
        chats = ChatFormat(load_tokenizer(folder), "own")
        items = toy_items(chats, world, each=EACH, new=NEW, positions=read_config(folder).max_positions)
        rows = [row["messages"] for row in items.rows]
        sampler = Sampler(
            load_model(folder, ParallelConfig()), eos_ids=chats.stop_ids, pad_id=chats.tokenizer.pad_id
        )
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        theirs = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=64)

        def lm_eval(batch: int) -> list[str]:
            theirs.batch_size_per_gpu = batch
            asked = {"until": [], "max_gen_toks": NEW, "do_sample": False}
            requests = [
                Instance(
                    request_type="generate_until",
                    doc={},
                    arguments=(theirs.apply_chat_template(row), asked),
                    idx=n,
                )
                for n, row in enumerate(rows)
            ]
            return theirs.generate_until(requests, disable_tqdm=True)

        def ours() -> list[str]:
            return answers_of(items, sampler, slots=64)

        mine = ours()  # which warms it up; lm-eval is by trying its batch sizes
        best = min(BATCHES, key=lambda batch: timed(lambda: lm_eval(batch))[0])
        seconds: dict[str, list[float]] = {"ours": [], f"lm-eval, batches of {best}": []}
        for _ in range(ROUNDS):
            for name, work in zip(seconds, (ours, lambda: lm_eval(best)), strict=True):
                spent, answers = timed(work)
                seconds[name].append(spent)
    same = sum(one.strip() == other.strip() for one, other in zip(mine, answers, strict=True))
    print(f"evaluate: {folder}: {same} of {len(rows)} answers are the same")
    assert same >= 0.95 * len(rows), "not the same work"
    for name, spent in seconds.items():
        print(f"evaluate: {name}: {len(rows)} answers in seconds {' '.join(f'{s:.2f}' for s in spent)}")
    one, other = seconds.values()
    figure("evaluate_over_lm_eval_hf", over(other, one), 1.2)


def answers_of(items: Items, sampler: Sampler, *, slots: int) -> list[str]:
    """What the sampler answers to the items, stored in a file as the tool stores it."""
    with tempfile.TemporaryDirectory() as place:
        file = AnswerFile(Path(place) / "toy.jsonl", {}, items.units, each=1, write=True)
        ask_sampler([(items, file)], sampler, slots=slots)
        file.close()
    return [file.found[unit].turns[0].text for unit in items.units]


def timed(work: Callable[[], list[str]]) -> tuple[float, list[str]]:
    began = time.perf_counter()
    answers = work()
    return time.perf_counter() - began, answers


def random_run(root: Path) -> tuple[Path, Path]:
    """A random model of the tiny recipe's shape with five experts, and the tests of its world."""
    from dataclasses import replace

    from megatron_bar.data import world
    from megatron_bar.data.tokenizer import load_tokenizer
    from megatron_bar.recipes.tiny import recipe
    from megatron_bar.weights.init import random_folder

    tiny, place = recipe(), root / "world"
    world.build(
        place,
        seed=0,
        sizes=replace(tiny.world, pretrain=4000, midtrain=10, sft_general=10, sft_domain=10, rlvr=10),
    )
    tokenizer = load_tokenizer(place / "tokenizer")
    shape = replace(tiny.shape.with_experts(5), eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
    random_folder(
        shape, root / "model", tokenizer=place / "tokenizer", seed=0, embedding_std=tiny.embedding_std
    )
    return root / "model", root / "world"


if __name__ == "__main__":
    main()
