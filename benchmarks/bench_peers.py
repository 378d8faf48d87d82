"""A step of SFT and of DPO against what a user would take instead: TRL's trainers and transformers alone.

    python benchmarks/bench_peers.py [--only sft_dense_float32_512 dpo_2_experts_bfloat16_2048 ...]
    python benchmarks/bench_peers.py --all

SmolLM2-135M's shape (hidden 576, FFN 1,536, 30 layers, 9 and 3 heads, vocabulary 49,152, the head of its own)
on random weights: dense, where everything trains, and as Mixtral of 2 or 5 experts, all active, where the
last expert, the router without its anchor row, embedding, last norm and head train, as in our policy sft.
Steps of about 2,048 tokens of packed documents in rows of 512 or 2,048, AdamW, one process, all cores;
alternated.

SFT   chats of which the answers alone are learnt; TRL gets the rows packed, as its own packing leaves them
DPO   pairs, length-normalised (TRL's loss sigmoid_norm); the start's log-probabilities are made in the step

TRL does not recompute activations here, which it would by default. In bf16 it keeps weights in fp32 and
multiplies under autocast, as it would by default and as our optimizer's copies are; transformers alone has
weights in bf16 and nothing else. What is frozen needs no gradient there either, but all experts are one
parameter: a hook zeroes the frozen ones' part. Their experts run in the faster of its two ways here.

The losses of every learnt token (DPO: every answer) are compared before anything is timed, in fp32 the steps'
losses afterwards. Peak memory is what a process of its own has more at its peak than before the model was there.
Without --all a few cases are measured; `make bench` installs TRL into .venv-trl, beside what .venv has;
without it nothing is measured.
"""

import argparse
import gc
import json
import os
import random
import site
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from statistics import mean, median

from bench_step import memory
from grpo_rounds import STOPS
from grpo_rounds import VOCABULARY as WORDS
from side_by_side import alternate, figure, over
from smollm2_shape import LAYERS, VOCABULARY, save_model

PACKAGES = Path(__file__).resolve().parent.parent / ".venv-trl"
TOKENS, ROUNDS, STEPS_OF_MEMORY = 2048, 3, 3
LR, BETAS, CLIP, BETA = 1e-5, (0.9, 0.95), 1.0, 5.0
SPEED, MEMORY = 1.3, 0.8
LIMITS = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Case:
    kind: str
    """sft or dpo."""
    experts: int
    dtype: str
    length: int
    """Tokens of a row."""

    @property
    def name(self) -> str:
        shape = f"{self.experts}_experts" if self.experts else "dense"
        return f"{self.kind}_{shape}_{self.dtype}_{self.length}"

    @property
    def rows(self) -> int:
        return TOKENS // self.length

    @cached_property
    def batch(self):
        """The step's rows, the same in each."""
        from megatron_bar.data.indexed import in_memory
        from megatron_bar.data.packing import PackedRows, PairRows

        rng = random.Random(0)
        drawn, packing = (chats, PackedRows) if self.kind == "sft" else (pairs, PairRows)
        rows = packing(
            [("drawn", in_memory(drawn(rng, self.length)))], self.length, pad_id=0, too_long="error"
        )
        return rows.take(range(self.rows))

    @property
    def tokens(self) -> int:
        """Without padding."""
        return int((self.batch.documents >= 0).sum())


CASES = {
    case.name: case for case in (Case(*of) for of in product(("sft", "dpo"), (0, 2, 5), LIMITS, (512, 2048)))
}
USUAL = ("sft_dense_float32_512", "sft_2_experts_bfloat16_2048", "dpo_dense_bfloat16_512")


def chats(rng: random.Random, length: int) -> list[tuple[list[int], list[bool]]]:
    """Ids of more than a step's documents, and which are an answer's."""
    found = []
    while sum(len(ids) for ids, _ in found) < 2 * TOKENS:
        ids = words(rng, rng.randint(length // 16, length // 2))
        learn: list[bool] = []
        while len(learn) < len(ids):
            learn += [False] * rng.randint(8, 32) + [True] * rng.randint(16, 64)
        found.append((ids, learn[: len(ids)]))
    return found


def pairs(rng: random.Random, length: int) -> list[tuple[list[int], list[bool]]]:
    """Returns what `chats` does, the better and the worse answer to one prompt in turn; id 1 ends each."""
    found = []
    while sum(len(ids) for ids, _ in found) < 2 * TOKENS:
        prompt = words(rng, rng.randint(length // 32, length // 8))
        for _ in range(2):
            answer = [*words(rng, rng.randint(length // 32, length // 4)), 1]
            found.append((prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    return found


def words(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(STOPS + 1, WORDS) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(USUAL), metavar="CASE")
    parser.add_argument(
        "--all", dest="only", action="store_const", const=list(CASES), help="every case; hours"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)  # way and folder, in this process
    args = parser.parse_args()
    if not prepared():
        return
    for name in args.only:
        if args.memory:
            way, folder = args.memory
            print(json.dumps(peak(CASES[name], way, Path(folder))))
            return
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            case = CASES[name]
            save_model(
                folder, experts=case.experts, dtype=case.dtype, layers=args.layers, vocabulary=args.vocabulary
            )
            compare_seconds(case, folder, args.rounds)
            compare_memory(case, folder)


def prepared() -> bool:
    """Whether TRL is there; and what this process needs so that it runs quietly and on all cores."""
    for folder in PACKAGES.glob("lib/python*/site-packages"):
        site.addsitedir(str(folder))  # at the end: what .venv has goes before it
    try:
        import trl
    except ImportError as error:
        print(f"nothing measured: {error}; make .venv-trl/.ready")
        return False
    import datasets
    import torch
    import transformers

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore", FutureWarning)  # TRL's calls of what transformers 6 renames
    print(f"TRL {trl.__version__}, transformers {transformers.__version__}", file=sys.stderr)
    return True


def compare_seconds(case: Case, folder: Path, rounds: int) -> None:
    from megatron_bar.parallel.state import distributed

    with distributed():
        beside_trl(case, folder, rounds)
        gc.collect()  # a trainer of theirs and its callbacks hold each other, and its model
        if case.kind == "sft":
            beside_transformers(case, folder, rounds)


def beside_trl(case: Case, folder: Path, rounds: int) -> None:
    ours = OurSteps(case, folder)
    trl = TrlSteps(case, folder, steps=rounds + 1)
    require_close(case, ours.losses(), trl.losses())
    told(case, "trl", trl.beside(ours))
    require_same_steps(case, ours.reported, trl.reported)


def beside_transformers(case: Case, folder: Path, rounds: int) -> None:
    ours = OurSteps(case, folder)
    alone = TransformersSteps(case, folder)
    require_close(case, ours.losses(), alone.losses())
    told(case, "transformers", alternate({"transformers": alone, "ours": ours}, rounds))
    require_same_steps(case, ours.reported, alone.reported)


def require_close(case: Case, ours: list[float], theirs: list[float]) -> None:
    """Raises unless two lists of losses are the same but for what rounds."""
    apart = mean(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    limit = LIMITS[case.dtype] * abs(mean(theirs))
    assert apart <= limit, (
        f"{case.name}: {len(ours)} losses are {apart:.1e} apart, at most {limit:.1e} expected"
    )


def require_same_steps(case: Case, ours: list[float], theirs: list[float]) -> None:
    """Raises as `require_close` does, in fp32: in bf16 a step is lost where the product's weights are
    rounded, and what is rounded differs."""
    if case.dtype == "float32":
        require_close(case, ours, theirs)


def told(case: Case, peer: str, seconds: dict[str, list[float]]) -> None:
    rates = {way: case.tokens / median(times) for way, times in seconds.items()}
    spent = ", ".join(
        f"{way} {median(seconds[way]):.2f} s, {rate:,.0f} tokens/s" for way, rate in rates.items()
    )
    ratios = over(seconds[peer], seconds["ours"])
    print(f"{case.name}: {spent}; {min(ratios):.2f} to {max(ratios):.2f} times as long")
    figure(f"{case.name}_over_{peer}", ratios, SPEED)


def compare_memory(case: Case, folder: Path) -> None:
    ways = ("ours", "trl", "transformers") if case.kind == "sft" else ("ours", "trl")
    bytes_of = {way: in_a_process(case, way, folder) for way in ways}
    print(
        f"{case.name}: peak " + ", ".join(f"{way} {size / 2**20:,.0f} MiB" for way, size in bytes_of.items())
    )
    for way in ways[1:]:
        figure(f"{case.name}_peak_of_{way}", bytes_of["ours"] / bytes_of[way], MEMORY, at_most=True)


def in_a_process(case: Case, way: str, folder: Path) -> float:
    command = [sys.executable, __file__, "--only", case.name, "--memory", way, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak(case: Case, way: str, folder: Path) -> float:
    """Bytes that a few steps take at their peak, model included."""
    from megatron_bar.parallel.state import distributed

    with distributed():
        # The code of all ways is there before, in each.
        import megatron.core.optimizer  # noqa: F401
        import trl.trainer.dpo_trainer
        import trl.trainer.sft_trainer  # noqa: F401

        import megatron_bar.training.trainer  # noqa: F401

        _ = case.batch
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
        before = memory("VmRSS")
        if way == "trl":
            TrlSteps(case, folder, steps=STEPS_OF_MEMORY).beside(lambda: 0.0)
        else:
            step = (OurSteps if way == "ours" else TransformersSteps)(case, folder)
            for _ in range(STEPS_OF_MEMORY):
                step()
        return memory("VmHWM") - before


class OurSteps:
    def __init__(self, case: Case, folder: Path):
        from megatron_bar.training.objective import LanguageModelling
        from megatron_bar.training.optim import OptimConfig
        from megatron_bar.training.preference import LengthNormalisedDPO
        from megatron_bar.training.stage import Stage
        from megatron_bar.training.trainer import Trainer

        stage = Stage(
            name=case.kind,
            policy=policy(case.experts),
            optim=OptimConfig(lr=LR, betas=BETAS, clip=CLIP),
            sequence=case.length,
            batch=case.rows,
            micro_batch=case.rows,
        )
        self.case = case
        self.objective = LanguageModelling() if case.kind == "sft" else LengthNormalisedDPO(beta=BETA)
        self.trainer = Trainer(folder, stage, steps=10**6, keep_start=case.kind == "dpo")
        self.reported: list[float] = []
        """Losses of the steps so far."""

    def losses(self) -> list[float]:
        """Returns the loss of every learnt token; of DPO, of every answer, as a mean over its tokens."""
        batch = self.case.batch
        (nll,) = self.trainer.token_nll([batch], self.objective)
        if self.case.kind == "sft":
            return nll[batch.labels >= 0].tolist()
        answers = (nll[row][mine] for row, mine in answers_of(batch))
        return [float(answer.mean()) for answer in answers]

    def __call__(self) -> float:
        batches = [self.case.batch]
        if self.case.kind == "dpo":
            from megatron_bar.training.objective import START_LOGPROBS

            with self.trainer.start_weights():
                batches = self.trainer.with_logprobs(batches, START_LOGPROBS, self.objective)
        loss = self.trainer.step(batches, self.objective)["loss"]
        self.reported.append(loss)
        return loss


def answers_of(batch) -> list:
    """Row, and where in it the labels of an answer are, document by document."""
    return [
        (row, (batch.documents[row] == number) & (batch.labels[row] >= 0))
        for row in range(len(batch.ids))
        for number in range(int(batch.documents[row].max()) + 1)
    ]


def policy(experts: int) -> str:
    """Name of the freezing; of more than two experts it is sft's with all but the last one frozen, which no
    stage of BAR asks for."""
    from megatron_bar.weights.groups import POLICIES, SFT, FreezePolicy, expert_index

    class LastExpert(FreezePolicy):
        def trainable(self, name: str) -> bool:
            return super().trainable(name) and expert_index(name) in (None, experts - 1)

    if experts <= 2:
        return "sft" if experts else "dense_all"
    name = f"sft_last_of_{experts}"
    POLICIES[name] = LastExpert(name=name, trains=SFT.trains)
    return name


class TrlSteps:
    """``steps`` steps of TRL's trainer, once."""

    def __init__(self, case: Case, folder: Path, *, steps: int):
        import torch
        import transformers
        import trl
        from datasets import Dataset

        given = {
            "output_dir": str(folder / "trl"),
            "max_steps": steps,
            "learning_rate": LR,
            "lr_scheduler_type": "constant",
            "adam_beta1": BETAS[0],
            "adam_beta2": BETAS[1],
            "weight_decay": 0.0,
            "max_grad_norm": CLIP,
            "gradient_checkpointing": False,
            "bf16": case.dtype == "bfloat16",
            "use_cpu": not torch.cuda.is_available(),
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
        }
        if case.experts:
            given["router_aux_loss_coef"] = 0.0
        if case.kind == "sft":
            rows = packed_rows(case.batch)
            prepared = {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": True}
            config = trl.SFTConfig(**given, **prepared, max_length=case.length)
        else:
            rows = text_pairs(case.batch)
            config = trl.DPOConfig(**given, loss_type=["sigmoid_norm"], beta=BETA, max_length=case.length)
        config.per_device_train_batch_size = len(rows)
        self.case = case
        self.trainer = (trl.SFTTrainer if case.kind == "sft" else trl.DPOTrainer)(
            model=load(case, folder, "float32"),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=transformers.AutoTokenizer.from_pretrained(folder),
        )
        self.trainer.remove_callback(transformers.PrinterCallback)
        self.reported: list[float] = []

    def losses(self) -> list[float]:
        """Returns what `OurSteps.losses` does, in the same order."""
        import torch

        trainer = self.trainer
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
            given = trainer.data_collator(list(trainer.train_dataset))
            if self.case.kind == "sft":
                output = trainer.model(**given, fused_lm_head=True)
                return (-output.log_probs[output.label_mask]).tolist()
            sums = torch.stack(trainer.compute_ref_log_probs(trainer.ref_model, given), dim=1).flatten()
            sizes = given["completion_mask"].sum(1).view(2, -1).T.flatten()
            return (-sums / sizes).tolist()

    def beside(self, ours: Callable[[], float]) -> dict[str, list[float]]:
        """Seconds of the steps, each followed by one of ``ours``; of the first, none."""
        import transformers

        seconds: dict[str, list[float]] = {"trl": [], "ours": []}

        class Turns(transformers.TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                self.began = time.perf_counter()

            def on_step_end(self, args, state, control, **_):
                ended = time.perf_counter()
                ours()
                if state.global_step > 1:
                    seconds["trl"].append(ended - self.began)
                    seconds["ours"].append(time.perf_counter() - ended)

        self.trainer.add_callback(Turns())
        self.trainer.train()
        self.reported = [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]
        return seconds


def packed_rows(batch) -> list[dict]:
    """The rows as TRL's packing leaves them: without padding, a label where its own token stands."""
    rows = []
    for ids, labels, documents in zip(batch.ids, batch.labels, batch.documents, strict=True):
        lengths = documents[documents >= 0].bincount().tolist()
        size = sum(lengths)
        own = [-100, *(label if label >= 0 else -100 for label in labels[: size - 1].tolist())]
        rows.append({"input_ids": ids[:size].tolist(), "labels": own, "seq_lengths": lengths})
    return rows


def text_pairs(batch) -> list[dict]:
    """The pairs as text of which TRL's tokens are the batch's."""
    texts = []
    for row, mine in answers_of(batch):
        answer = batch.labels[row][mine]
        first = int(mine.nonzero()[0])  # the prompt's last token predicts the answer's first
        prompt = batch.ids[row][first - int(batch.positions[row][first]) : first + 1]
        texts.append((" ".join(f"w{n}" for n in prompt), " ".join(f"w{n}" for n in answer[:-1])))
    return [
        {"prompt": prompt, "chosen": f" {chosen} <|end1|>", "rejected": f" {rejected} <|end1|>"}
        for (prompt, chosen), (_, rejected) in zip(texts[::2], texts[1::2], strict=True)
    ]


class TransformersSteps:
    """SFT by transformers' model and torch's fused AdamW, with the same clipping."""

    def __init__(self, case: Case, folder: Path):
        import torch

        self.case = case
        self.model = load(case, folder, case.dtype)
        self.trained = [param for param in self.model.parameters() if param.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LR, betas=BETAS, weight_decay=0.0, fused=True)
        self.reported: list[float] = []

    def _nll(self):
        from torch.nn.functional import cross_entropy

        batch = self.case.batch
        logits = self.model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).logits
        learnt = batch.labels >= 0
        return cross_entropy(logits[learnt].float(), batch.labels[learnt], reduction="none")

    def losses(self) -> list[float]:
        import torch

        with torch.no_grad():
            return self._nll().tolist()

    def __call__(self) -> float:
        import torch

        self.optimizer.zero_grad()
        loss = self._nll().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, CLIP)
        self.optimizer.step()
        self.reported.append(float(loss.detach()))
        return self.reported[-1]


def load(case: Case, folder: Path, dtype: str):
    """The model in transformers, frozen where ours is."""
    import torch
    import transformers

    faster = {"experts_implementation": faster_experts(dtype, case.experts)} if case.experts else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **faster)
    model.train()
    if case.experts:
        freeze(model, case.experts)
    return model


def freeze(model, experts: int) -> None:
    heads = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")

    def without(rows: list[int], gradient):
        return gradient.index_fill(0, gradient.new_tensor(rows).long(), 0)

    for name, parameter in model.named_parameters():
        expert, router = ".experts." in name, name.endswith(".gate.weight")
        parameter.requires_grad_(expert or router or name in heads)
        if expert:
            parameter.register_hook(partial(without, list(range(experts - 1))))
        elif router:
            parameter.register_hook(partial(without, [0]))


def faster_experts(dtype: str, experts: int) -> str:
    """Name of the faster of transformers' ways to run experts, on one layer of this width."""
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    def run(way: str) -> Callable[[], None]:
        config = MixtralConfig(
            hidden_size=576, intermediate_size=1536, num_local_experts=experts, num_experts_per_tok=experts
        )
        config._experts_implementation = way
        layer = MixtralSparseMoeBlock(config).to(getattr(torch, dtype))
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        x = torch.randn(1, TOKENS // 4, 576, dtype=getattr(torch, dtype), requires_grad=True)
        return lambda: layer(x).sum().backward()

    seconds = alternate({way: run(way) for way in ("eager", "grouped_mm")}, 2)
    return min(seconds, key=lambda way: median(seconds[way]))


if __name__ == "__main__":
    main()
