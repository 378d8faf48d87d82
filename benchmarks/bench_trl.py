"""A whole round of GRPO (sample, grade, learn) against TRL's GRPOTrainer: seconds, side by side.

    python benchmarks/bench_trl.py [--only dense_128 two_experts_128 ...]

Dense OLMo 2 of which everything trains, and FlexOlmo of two experts with the anchor frozen (its experts are
one parameter in transformers, so a hook zeroes the anchor's gradient there). 4 layers, vocabulary 1,000,
random weights, of which every fiftieth token ends an answer: lengths vary as those of trained models do. 16
prompts, 8 answers each of at most 128 tokens, all of them in flight at once, four optimizer steps, the same
text graded by the same function, no KL, no checkpoints, fp32, one process, all cores; alternated.

TRL samples by transformers' ``generate``, its way without a server of vLLM, and does not recompute
activations, which it would by default. Its seconds are those from the first step's begin to the last one's
end, without what ``train`` sets up. Ours have the comparison of sampler and trainer in them. Before anything
is timed the losses of both on the same tokens are compared, afterwards the lengths of what was sampled.

`make bench` installs TRL into .venv-trl, beside what .venv has; without it nothing is measured.
"""

import argparse
import os
import site
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean, median

from grpo_rounds import (
    BETAS,
    CLIP,
    CLIP_HIGH,
    CLIP_LOW,
    GROUP,
    LR,
    NEW,
    PROMPTS,
    SIZES,
    STEPS,
    OurRounds,
    Sampled,
    draw_prompts,
    grade,
    save_model,
)
from side_by_side import figure, over

PACKAGES = Path(__file__).resolve().parent.parent / ".venv-trl"
SHAPES = {f"{kind}_{size}": (kind, size) for size in SIZES for kind in ("dense", "two_experts")}
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    for folder in PACKAGES.glob("lib/python*/site-packages"):
        site.addsitedir(str(folder))  # at the end: what .venv has goes before it
    try:
        import trl
    except ImportError as error:
        print(f"nothing measured: {error}; make .venv-trl/.ready")
        return
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # TRL's calls of what transformers 6 renames
    print(f"TRL {trl.__version__}, transformers {transformers.__version__}")
    for name in args.only:
        compare(name, args.rounds)


def compare(name: str, rounds: int) -> None:
    from megatron_bar.parallel.state import distributed

    kind, size = SHAPES[name]
    words = draw_prompts()
    with tempfile.TemporaryDirectory() as place, distributed():
        folder = Path(place) / "model"
        save_model(folder, kind, size)
        graded = {"ours": Sampled(), "TRL": Sampled()}
        ways = {
            "ours": OurRounds(folder, kind, words, graded["ours"]),
            "TRL": trl_rounds(folder, kind, words, graded["TRL"]),
        }
        losses = [way.losses(words) for way in ways.values()]
        apart = max(abs(a - b) for a, b in zip(*losses, strict=True))
        assert apart <= 1e-4, f"the models differ by {apart:.1e} in a token's loss"
        for number in range(rounds + 1):
            for side, way in ways.items():
                seconds = way.round()
                if number:  # the first warms both up
                    graded[side].seconds.append(seconds)
    report(name, graded)


def report(name: str, graded: dict[str, Sampled]) -> None:
    for side, sampled in graded.items():
        rounds = " ".join(f"{seconds:.2f}" for seconds in sampled.seconds)
        print(
            f"{name}, {side}: seconds {rounds}, median {median(sampled.seconds):.2f}; "
            f"answers of {mean(sampled.lengths):.1f} tokens, reward {mean(sampled.rewards):.2f}"
        )
    lengths = [mean(sampled.lengths) for sampled in graded.values()]
    assert abs(lengths[0] - lengths[1]) <= 0.15 * max(lengths), lengths
    assert len({len(sampled.rewards) for sampled in graded.values()}) == 1
    ours, theirs = graded["ours"].seconds, graded["TRL"].seconds
    ratios = over(theirs, ours)
    print(f"{name}: {min(ratios):.2f} to {max(ratios):.2f} times as long in TRL")
    figure(f"grpo_round_{name}_over_trl", ratios, 2)


class TrlRounds:
    """Rounds of TRL's; ``trainer``: made for one round, and asked again for each."""

    def __init__(self, trainer, clock):
        self.trainer = trainer
        self.clock = clock

    def losses(self, words: list[list[int]]) -> list[float]:
        """Returns the loss of every token of the prompts but the first."""
        import torch
        from torch.nn.functional import cross_entropy

        found = []
        with torch.no_grad():
            for ids in words:
                row = torch.tensor([ids])
                logits = self.trainer.model(input_ids=row).logits[0, :-1]
                found += cross_entropy(logits, row[0, 1:], reduction="none").tolist()
        return found

    def round(self) -> float:
        """Returns its seconds."""
        self.trainer.train()
        assert self.trainer.state.global_step == STEPS
        return self.clock.ended - self.clock.began


def trl_options() -> dict:
    """What a round is, by its names."""
    return {
        "per_device_train_batch_size": PROMPTS * GROUP // STEPS,
        "steps_per_generation": STEPS,
        "gradient_accumulation_steps": 1,
        "max_steps": STEPS,
        "num_generations": GROUP,
        "max_completion_length": NEW,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "weight_decay": 0.0,
        "max_grad_norm": CLIP,
        "beta": 0.0,
        "epsilon": CLIP_LOW,
        "epsilon_high": CLIP_HIGH,
        "scale_rewards": "none",
        "loss_type": "dapo",
    }


def trl_rounds(folder: Path, kind: str, words: list[list[int]], sampled: Sampled) -> TrlRounds:
    import torch
    import transformers
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 0:
                self.began = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            self.ended = time.perf_counter()

    config = GRPOConfig(
        **trl_options(),
        output_dir=str(folder / "trl"),
        activation_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        shuffle_dataset=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if kind == "two_experts":
        freeze_anchor(model)
    clock = Clock()
    trainer = GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: grade(completions, sampled),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": " ".join(f"w{n}" for n in ids)} for ids in words]),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
        callbacks=[clock],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return TrlRounds(trainer, clock)


def freeze_anchor(model) -> None:
    """Leaves expert 0 and its row of each router as they are."""
    for name, parameter in model.named_parameters():
        if ".experts." in name or name.endswith(".gate.weight"):
            parameter.register_hook(lambda gradient: gradient.index_fill(0, gradient.new_zeros(1).long(), 0))


if __name__ == "__main__":
    main()
