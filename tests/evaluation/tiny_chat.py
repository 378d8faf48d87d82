"""A tiny random model that chats: its folder, what transformers says it answers, and tests that are right by
that."""

import json
from pathlib import Path

import torch
from folders import save_hf

from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.data.world import SKILLS

QUESTIONS = ["What is 3 * 4 + 5?", "Say blue.", "Who?", "Count the red hats in the box of the old doctor."]
NEW = 12


def save_chat_hf(path: Path, *, experts: int = 3, seed: int = 7, **changes) -> Path:
    """``experts`` with all of them active, 128 positions, a tokenizer with a chat template."""
    texts = ["What is the red hat? Say blue. Answer: 3 * 4 + 5 = 17"] * 4
    tokenizer = train_tokenizer(texts, path.parent / f"{path.name}-tokenizer", vocab_size=290)
    ids = {"pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.eos_id}
    sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 128}
    save_hf(path, experts=experts, seed=seed, **ids | sizes | changes)
    train_tokenizer(texts, path, vocab_size=290)
    return path


def answers(path: Path, *, new: int = NEW, **changes) -> list[str]:
    """Greedy answers to QUESTIONS by transformers alone, one at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **changes)
    tokenizer = AutoTokenizer.from_pretrained(path)
    found = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**ids, max_new_tokens=new, do_sample=False)[0, ids["input_ids"].shape[1] :]
        found.append(tokenizer.decode(out, skip_special_tokens=True))
    return found


def write_rows(file: Path, truths: list[str]) -> None:
    rows = [
        {"messages": [{"role": "user", "content": question}], "verifier": "exact", "truth": truth}
        for question, truth in zip(QUESTIONS, truths, strict=True)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_world(root: Path, truths: list[str]) -> Path:
    """The toy's seven test sets, all with these rows."""
    for skill in SKILLS:
        write_rows(root / f"test_{skill}.jsonl", truths)
    return root
