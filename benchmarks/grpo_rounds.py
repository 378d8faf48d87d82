"""Rounds of GRPO by this project on random weights, and what they are made of: bench_trl.py compares them."""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

SIZES = {128: {"intermediate_size": 384, "heads": 4}, 512: {"intermediate_size": 1376, "heads": 8}}
VOCABULARY, STOPS = 1000, 20
PROMPTS, GROUP, NEW, STEPS = 16, 8, 128, 4
LR, CLIP, BETAS, CLIP_LOW, CLIP_HIGH = 1e-5, 1.0, (0.9, 0.95), 0.2, 0.272


@dataclass(frozen=True)
class Sampled:
    """What the rounds of one side took and what they drew."""

    seconds: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


def draw_prompts() -> list[list[int]]:
    """Returns ids of the prompts, none of which ends an answer."""
    rng = random.Random(0)
    return [[rng.randrange(STOPS + 1, VOCABULARY) for _ in range(rng.randint(8, 40))] for _ in range(PROMPTS)]


def save_model(folder: Path, kind: str, size: int) -> None:
    """Random weights with a tokenizer of words; ids 1 to STOPS end an answer."""
    import torch
    import transformers

    torch.manual_seed(0)
    given = {
        "vocab_size": VOCABULARY,
        "hidden_size": size,
        "intermediate_size": SIZES[size]["intermediate_size"],
        "num_hidden_layers": 4,
        "num_attention_heads": SIZES[size]["heads"],
        "num_key_value_heads": SIZES[size]["heads"],
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "initializer_range": 0.09,
    }
    if kind == "dense":
        model = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**given))
    else:
        config = transformers.FlexOlmoConfig(**given, num_experts=2, num_experts_per_tok=2)
        model = transformers.FlexOlmoForCausalLM(config)
    model.generation_config.eos_token_id = list(range(1, STOPS + 1))
    model.save_pretrained(folder)
    save_tokenizer(folder)


def save_tokenizer(folder: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<|pad|>", *(f"<|end{n}|>" for n in range(1, STOPS + 1))]
    words = names + [f"w{n}" for n in range(len(names), VOCABULARY)]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=names[0]))
    tokenizer.add_special_tokens(names)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=names[0], eos_token=names[1], padding_side="left"
    ).save_pretrained(folder)


def grade(texts: list[str], sampled: Sampled) -> list[float]:
    """Returns 1 for each text most of whose words are even, else 0."""
    rewards = []
    for text in texts:
        words = text.split()
        even = sum(int(word[1:]) % 2 == 0 for word in words)
        rewards.append(float(2 * even > len(words)))
        sampled.lengths.append(len(words))
    sampled.rewards.extend(rewards)
    return rewards


def our_stage(kind: str):
    """Returns a stage that trains all of a dense model, or of two experts what RLVR trains as published."""
    from megatron_bar.training.optim import OptimConfig
    from megatron_bar.training.stage import Stage

    optim = OptimConfig(lr=LR, betas=BETAS, clip=CLIP)
    policy = "dense_all" if kind == "dense" else "rlvr"
    return Stage(name="rlvr", policy=policy, optim=optim, sequence=256, batch=8, micro_batch=4)


def our_config():
    from megatron_bar.rl.config import GRPOConfig

    return GRPOConfig(
        rounds=10**6,
        prompts=PROMPTS,
        group=GROUP,
        mini_batches=STEPS,
        max_new_tokens=NEW,
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
        reward=1.0,
        kl_every=0,
        solved=2.0,
        slots=PROMPTS * GROUP,
    )


class Chats:
    """What a chat format says of a tokenizer without a template."""

    def __init__(self, folder: Path):
        from megatron_bar.data.tokenizer import load_tokenizer

        self.tokenizer = load_tokenizer(folder)
        self.stop_ids = frozenset(range(1, STOPS + 1))
        self.pad_id = 0


class OurRounds:
    """Rounds of this project's."""

    def __init__(self, folder: Path, kind: str, words: list[list[int]], sampled: Sampled):
        from megatron_bar.rl import grpo
        from megatron_bar.rl.apart import build_engine
        from megatron_bar.rl.prompts import Prompts, Task
        from megatron_bar.rl.rollouts import Rollouts
        from megatron_bar.training.guard import Guard
        from megatron_bar.training.trainer import Trainer

        stage, config = our_stage(kind), our_config()
        chats = Chats(folder)
        tasks = [Task(prompt=ids, verifier="", truth=None) for ids in words]
        trainer = Trainer(folder, stage, steps=config.steps)
        guard = Guard("rlvr", folder / "nonfinite", stage, start=0, saved=None, watched=("grad_norm",))
        engine = build_engine(config.engine, trainer, chats, config.params, place=folder / "links")
        prompts = Prompts(tasks, seed=0, solved=config.solved)
        rollouts = Rollouts(trainer, engine, tasks, prompts, config, chats.pad_id)

        def verify(items) -> list[float]:
            return grade([text for _, text, _ in items], sampled)

        self.trainer = trainer
        self.rounds = grpo.Rounds("rlvr", rollouts, guard, chats.tokenizer, verify)

    def losses(self, words: list[list[int]]) -> list[float]:
        """Returns the loss of every token of the prompts but the first."""
        import torch

        found = []
        with torch.no_grad():
            for ids in words:
                row = torch.tensor([ids])
                nll, _ = self.trainer.model(row[:, :-1], torch.arange(len(ids) - 1)[None], labels=row[:, 1:])
                found += nll.flatten().tolist()
        return found

    def round(self) -> float:
        """Returns its seconds."""
        start = time.perf_counter()
        before = self.trainer.done
        self.rounds.next()
        assert self.trainer.done - before == STEPS
        return time.perf_counter() - start
