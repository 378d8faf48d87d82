"""Rollouts by our sampler against transformers' ``generate`` on the same model: tokens per second, side by
side.

256 prompts, 64 at a time, every answer's length forced: uniform on 1 to 128. transformers takes the prompts
in four batches and each runs until its longest answer is done; our slots are refilled. Greedy, fp32, one
process, the threads given to both the same; alternated, medians. The lengths of both sides' answers are
checked, and that their tokens agree where they are compared.
"""

import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median

from side_by_side import figure

PROMPTS, SLOTS, LONGEST, ROUNDS = 256, 64, 128, 3


def main() -> None:
    import torch
    import transformers

    from megatron_bar.evaluation.generative import load_model
    from megatron_bar.models.sampler import Sampler
    from megatron_bar.parallel.state import ParallelConfig, distributed

    torch.set_num_threads(os.cpu_count() or 1)
    rng = random.Random(0)
    config = transformers.FlexOlmoConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        num_experts=2,
        num_experts_per_tok=2,
        pad_token_id=0,
        eos_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=0.09,
    )
    prompts = [[rng.randrange(2, 1000) for _ in range(rng.randint(8, 40))] for _ in range(PROMPTS)]
    lengths = [rng.randint(1, LONGEST) for _ in range(PROMPTS)]
    with tempfile.TemporaryDirectory() as folder, distributed():
        transformers.FlexOlmoForCausalLM(config).save_pretrained(folder)
        save_tokenizer(Path(folder))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        sampler = Sampler(load_model(Path(folder), ParallelConfig()), eos_ids=set(), pad_id=0)
        seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
        for number in range(ROUNDS + 1):
            began = time.perf_counter()
            ours = sampler.generate(prompts, max_new_tokens=lengths, temperature=0.0, slots=SLOTS)
            between = time.perf_counter()
            answers = generate(theirs, prompts, lengths)
            ended = time.perf_counter()
            if number:  # the first warms both up
                seconds["ours"].append(between - began)
                seconds["transformers"].append(ended - between)
    assert [len(c.ids) for c in ours] == lengths == [len(answer) for answer in answers]
    same = sum(c.ids == answer for c, answer in zip(ours, answers, strict=True))
    assert same >= 0.95 * PROMPTS, f"only {same} of {PROMPTS} answers are the same"
    for name, spent in seconds.items():
        rounds = " ".join(f"{s:.2f}" for s in spent)
        print(
            f"rollout: {name}: {sum(lengths):,} tokens in seconds {rounds}, median "
            f"{sum(lengths) / median(spent):,.0f} tokens/s"
        )
    ratio = median(a / b for a, b in zip(seconds["transformers"], seconds["ours"], strict=True))
    figure("rollout_over_transformers_generate", ratio, 1.5)


def generate(model, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
    import torch

    answers = []
    for start in range(0, len(prompts), SLOTS):
        part, wanted = prompts[start : start + SLOTS], lengths[start : start + SLOTS]
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


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"<|pad|>": 0, "<|endoftext|>": 1}, unk_token="<|pad|>"))
    tokenizer.add_special_tokens(["<|pad|>", "<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    main()
