"""Rollouts by our sampler, by vLLM and by transformers' ``generate`` from the same folders: tokens per
second, side by side.

    python benchmarks/bench_rollout.py --hidden 128 --active 5 --slots 64
    python benchmarks/bench_rollout.py --vllm-python .venv-vllm/bin/python --threads 1

Five experts, prompts of 8 to 40 tokens, every answer's length forced: uniform on 1 to 128. transformers takes
as many prompts as there are slots and each batch runs until its longest answer is done; the slots of the
others are refilled. Greedy, fp32, one process each, the threads given to all the same; alternated, medians.
The lengths of all answers are checked, and that their tokens agree. vLLM has an environment of its own; where
it is not installed its rows say so.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from side_by_side import figure, over

EXPERTS, VOCABULARY, LONGEST, LENGTH = 5, 1000, 128, 256
FFN = {128: 384, 512: 1376}
PROMPTS = {16: 64, 64: 256, 128: 256}
HERE = Path(__file__).resolve().parent
VLLM = HERE.parent / ".venv-vllm/bin/python"


def main() -> None:
    args = arguments()
    import torch

    from megatron_bar.parallel.state import distributed

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as place, distributed():
        for hidden in args.hidden:
            folders = {k: save_model(Path(place) / f"{hidden}_{k}", hidden, k) for k in args.active}
            for active, folder in folders.items():
                for slots in args.slots:
                    beside_others(folder, hidden, active, slots, args)
            if {2, EXPERTS} <= set(folders):
                alone = save_model(Path(place) / f"{hidden}_alone", hidden, 2, experts=2)
                few_over_all(folders, alone, hidden, args.rounds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 512], choices=FFN)
    parser.add_argument("--active", type=int, nargs="+", default=[EXPERTS, 2], help="of five experts")
    parser.add_argument("--slots", type=int, nargs="+", default=[16, 64, 128], choices=PROMPTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--vllm-python", type=Path, default=VLLM, help="of the environment that has vLLM")
    return parser.parse_args()


def beside_others(folder: Path, hidden: int, active: int, slots: int, args: argparse.Namespace) -> None:
    prompts, lengths = asked(slots)
    name = f"hidden {hidden}, {active} of {EXPERTS} experts, {slots} slots"
    with vllm_of(folder, slots, args) as vllm:
        ways = {"ours": ours(folder), "transformers": transformers_of(folder)} | vllm
        seconds, answers = rounds_of(ways, prompts, lengths, slots, args.rounds)
    if not vllm:
        print(f"rollout, {name}: vLLM is not installed in {args.vllm_python}")
    for way, found in answers.items():
        assert [len(answer) for answer in found] == lengths, way
        same = sum(a == b for a, b in zip(found, answers["ours"], strict=True)) / len(prompts)
        assert same >= 0.9, f"{way}: only {same:.0%} of the answers are the same"
        print(f"rollout, {name}: {way}: {same:.1%} of the answers are ours")
    told(name, seconds, sum(lengths))
    for way, target in (("transformers", 3), ("vllm", 1)):
        if way in seconds:
            ratios = over(seconds[way], seconds["ours"])
            print(f"{way} over ours, round by round: {' '.join(f'{r:.2f}' for r in ratios)}")
            short = f"rollout_h{hidden}_{active}_of_{EXPERTS}_{slots}_slots_over_{way}"
            figure(short, ratios, target)


def few_over_all(folders: dict[int, Path], alone: Path, hidden: int, rounds: int) -> None:
    """Two active experts over five, beside what no choice can exceed: a model that has but those two."""
    prompts, lengths = asked(64)
    ways = {f"{active} of {EXPERTS}": ours(folders[active]) for active in (2, EXPERTS)}
    seconds, _ = rounds_of(ways | {"2 of 2": ours(alone)}, prompts, lengths, 64, rounds)
    told(f"hidden {hidden}, 64 slots", seconds, sum(lengths))
    few, all_of_them, two = seconds.values()
    limit = median(over(all_of_them, two))
    print(f"hidden {hidden}, 64 slots: two experts alone over {EXPERTS}: {limit:.2f}, the limit")
    figure(f"rollout_h{hidden}_2_of_{EXPERTS}_over_{EXPERTS}", over(all_of_them, few), 1.5)


def rounds_of(ways: dict, prompts, lengths, slots: int, rounds: int) -> tuple[dict, dict]:
    """Seconds of every way in every round, after one to warm up, and the last answers."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    answers = {}
    for number in range(rounds + 1):
        for way, run in ways.items():
            took, answers[way] = run(prompts, lengths, slots)
            if number:
                seconds[way].append(took)
    return seconds, answers


def told(name: str, seconds: dict[str, list[float]], tokens: int) -> None:
    for way, spent in seconds.items():
        rate = f"{tokens / median(spent):,.0f} tokens/s"
        rounds = " ".join(f"{s:.2f}" for s in spent)
        print(f"rollout, {name}: {way}: {tokens:,} tokens in seconds {rounds}, median {rate}", flush=True)


def asked(slots: int) -> tuple[list[list[int]], list[int]]:
    rng = random.Random(0)
    count = PROMPTS[slots]
    prompts = [[rng.randrange(2, VOCABULARY) for _ in range(rng.randint(8, 40))] for _ in range(count)]
    return prompts, [rng.randint(1, LONGEST) for _ in range(count)]


def ours(folder: Path):
    from megatron_bar.evaluation.generative import load_model
    from megatron_bar.models.sampler import Sampler
    from megatron_bar.parallel.state import ParallelConfig

    sampler = Sampler(load_model(folder, ParallelConfig()), eos_ids=set(), pad_id=0)

    def run(prompts, lengths, slots):
        began = time.perf_counter()
        done = sampler.generate(prompts, max_new_tokens=lengths, temperature=0.0, slots=slots)
        return time.perf_counter() - began, [completion.ids for completion in done]

    return run


def transformers_of(folder: Path):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def run(prompts, lengths, slots):
        began = time.perf_counter()
        answers = generate(model, prompts, lengths, slots)
        return time.perf_counter() - began, answers

    return run


def generate(model, prompts: list[list[int]], lengths: list[int], slots: int) -> list[list[int]]:
    import torch

    answers = []
    for start in range(0, len(prompts), slots):
        part, wanted = prompts[start : start + slots], lengths[start : start + slots]
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in part])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
        options = {
            "max_new_tokens": max(wanted),
            "min_new_tokens": max(wanted),
            "do_sample": False,
            "eos_token_id": None,
        }
        out = model.generate(ids, attention_mask=mask, pad_token_id=0, **options)
        answers += [row[width : width + n].tolist() for row, n in zip(out, wanted, strict=True)]
    return answers


@contextmanager
def vllm_of(folder: Path, slots: int, args: argparse.Namespace):
    """A process of vLLM as the one way in a dict; an empty dict where it is not installed."""
    if not args.vllm_python.exists():
        yield {}
        return
    # In one process with the engine, so that it ends with its input; threads where ours may run, too.
    own = {
        "OMP_NUM_THREADS": str(args.threads),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | own
    command = [args.vllm_python, HERE / "vllm_rollouts.py", folder, str(slots), str(LENGTH)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=env, text=True, **pipes | {"stderr": said})
        try:
            yield {"vllm": partial(vllm_answers, process)} if process.stdout.readline() else failed(said)
        finally:
            process.stdin.close()
            process.wait()


def failed(said) -> dict:
    said.seek(0)
    print(f"vLLM did not start: {said.read().strip().splitlines()[-1]}", file=sys.stderr)
    return {}


def vllm_answers(process: subprocess.Popen, prompts, lengths, slots: int) -> tuple[float, list[list[int]]]:
    print(json.dumps([prompts, lengths]), file=process.stdin, flush=True)
    seconds, answers = json.loads(process.stdout.readline())
    return seconds, answers


def save_model(folder: Path, hidden: int, active: int, experts: int = EXPERTS) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.FlexOlmoConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=FFN[hidden],
        num_hidden_layers=4,
        num_attention_heads=hidden // 64 if hidden > 128 else 4,
        num_key_value_heads=hidden // 64 if hidden > 128 else 4,
        max_position_embeddings=512,
        num_experts=experts,
        num_experts_per_tok=active,
        pad_token_id=0,
        eos_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=1 / hidden**0.5,
    )
    transformers.FlexOlmoForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"<|pad|>": 0, "<|endoftext|>": 1}, unk_token="<|pad|>"))
    tokenizer.add_special_tokens(["<|pad|>", "<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    main()
