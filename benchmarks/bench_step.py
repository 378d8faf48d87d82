"""One training step, forward to optimizer, side by side: what freezing saves.

    python benchmarks/bench_step.py [--only 2 5]

Hidden 512, FFN 1376, 4 layers, vocabulary 2,048 (about the share of the products that it has at 7B), one
batch of 4 x 256 tokens, AdamW, one process, all cores, fp32 and bf16; alternated, medians. Of 2 or 5 experts,
all active, the last one and the routers train, as in mid-training.

masking        the reference's freezing on our own forward pass: everything has gradients and optimizer states, hooks zero those
               of what is frozen
transformers   FlexOlmo with the same weights; its experts are one parameter, so of those a hook zeroes the frozen ones' gradient,
               the rest is frozen; the faster of its two implementations of experts on this machine
all            everything trains;  router: the routers alone do

First losses are compared before anything is timed. Peak memory is what a process of its own has more at its
peak than before the model was there.
"""

import argparse
import copy
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from bench_moe import model_shape
from side_by_side import alternate, figure, over

from megatron_bar.weights.hf_config import ModelConfig

LAYERS, ROWS, LENGTH, PAIRS = 4, 4, 256, 7
TARGETS = {2: 1.25, 5: 1.3}
DTYPES = ("float32", "bfloat16")
LR = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", type=int, nargs="+", choices=TARGETS, default=list(TARGETS), help="numbers of experts"
    )
    parser.add_argument(
        "--memory", nargs=3, help=argparse.SUPPRESS
    )  # experts, dtype and way, in this process
    args = parser.parse_args()
    if args.memory:
        experts, dtype, way = args.memory
        print(json.dumps(peak(int(experts), dtype, way)))
        return
    for experts in args.only:
        for dtype in DTYPES:
            compare(experts, dtype)
    for experts in args.only:
        for dtype in DTYPES:
            bytes_of = {way: in_a_process(experts, dtype, way) for way in ("frozen", "masking")}
            print(
                f"{experts} experts, {dtype}: peak "
                + ", ".join(f"{way} {b / 2**20:.0f} MiB" for way, b in bytes_of.items())
            )
            figure(
                f"step_{experts}_experts_{dtype}_peak_of_masking",
                bytes_of["frozen"] / bytes_of["masking"],
                0.8,
                at_most=True,
            )


def compare(experts: int, dtype: str) -> None:
    from megatron_bar.parallel.state import distributed

    with distributed(), tempfile.TemporaryDirectory() as folder:
        ways = {name: ours(name, experts, dtype) for name in ("frozen", "masking", "all", "router")}
        ways |= {"transformers": transformers_step(ways["frozen"], Path(folder))}
        losses = {name: way() for name, way in ways.items()}
        limit = 1e-4 if dtype == "float32" else 2e-2
        assert max(losses.values()) - min(losses.values()) <= limit * losses["frozen"], losses
        seconds = alternate(ways, PAIRS)
    spent = ", ".join(f"{way} {1e3 * median(times):.0f} ms" for way, times in seconds.items())
    print(f"{experts} experts, {dtype}: {spent}; {ROWS * LENGTH / median(seconds['frozen']):,.0f} tokens/s")
    name = f"step_{experts}_experts_{dtype}"
    figure(f"{name}_over_transformers", over(seconds["transformers"], seconds["frozen"]), 1.2)
    figure(f"{name}_over_masking", over(seconds["masking"], seconds["frozen"]), TARGETS[experts])
    figure(f"{name}_router_of_all", over(seconds["router"], seconds["all"]), 0.65, at_most=True)


def is_frozen(experts: int, name: str) -> bool:
    return f".experts.{experts - 1}." not in name and ".gate." not in name


class Step:
    """A step of ours on random weights and tokens; ``frozen`` and ``masked`` say of a folder's tensor that it
    has no gradient, and that it has one which is zeroed."""

    def __init__(
        self,
        shape: ModelConfig,
        *,
        frozen: Callable[[str], bool],
        masked: Callable[[str], bool] = lambda _: False,
        rows: int = ROWS,
        length: int = LENGTH,
        recompute: bool = False,
    ):
        import torch
        from megatron.core.distributed import (
            DistributedDataParallel,
            DistributedDataParallelConfig,
            finalize_model_grads,
        )

        from megatron_bar.models.build import build_model
        from megatron_bar.parallel import cpu
        from megatron_bar.parallel.state import ParallelConfig, set_layout
        from megatron_bar.training.optim import OptimConfig, build_optimizer

        layout = ParallelConfig()
        set_layout(layout, shape, seed=0)
        self.model = build_model(shape, layout, recompute=recompute)
        generator = torch.Generator(cpu.device()).manual_seed(0)
        for _, param, op in self.model.parameters_with_ops():
            with torch.no_grad():
                if param.dim() > 1:
                    param.normal_(std=0.05, generator=generator)
            param.requires_grad_(not frozen(op.names[0]))
            if masked(op.names[0]):
                param.register_hook(torch.zeros_like)
        config = self.model.config
        config.finalize_model_grads_func = finalize_model_grads
        ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
        self.ddp = DistributedDataParallel(config, ddp, self.model)
        self.optimizer = build_optimizer(self.ddp, OptimConfig(lr=LR))
        ids = torch.randint(0, shape.vocab_size, (rows, length + 1), generator=generator, device=cpu.device())
        self.ids, self.labels = ids[:, :-1], ids[:, 1:].contiguous()
        self.document = length

    def part(self, rows: slice, length: int, *, document: int) -> "Step":
        """The same model's step on these rows' first tokens, packed documents of ``document`` tokens each."""
        step = copy.copy(self)
        step.ids, step.labels = (values[rows, :length].contiguous() for values in (self.ids, self.labels))
        step.document = document
        return step

    def __call__(self) -> float:
        import torch
        from megatron.core.pipeline_parallel import get_forward_backward_func

        from megatron_bar.training.optim import update

        def forward(_, model):
            places = torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)
            documents = places // self.document if self.document < self.ids.shape[1] else None
            nll, _ = model(self.ids, places % self.document, labels=self.labels, documents=documents)
            count = torch.tensor(nll.numel(), dtype=torch.int, device=nll.device)
            return nll, lambda nll: (nll.sum(), count, nll.detach().mean())

        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        rows, length = self.ids.shape
        sizes = {"num_microbatches": 1, "seq_length": length, "micro_batch_size": rows}
        (loss,) = get_forward_backward_func()(
            forward_step_func=forward, data_iterator=None, model=[self.ddp], forward_only=False, **sizes
        )
        updated, _ = update(self.optimizer, finite=True)
        assert updated
        return float(loss)


def ours(way: str, experts: int, dtype: str) -> Step:
    shape = model_shape(experts, dtype, LAYERS)
    ways = {
        "frozen": {"frozen": partial(is_frozen, experts)},
        "masking": {"frozen": lambda _: False, "masked": partial(is_frozen, experts)},
        "all": {"frozen": lambda _: False},
        "router": {"frozen": lambda name: ".gate." not in name},
    }
    return Step(shape, **ways[way])


def transformers_step(ours: Step, folder: Path) -> Callable[[], float]:
    """The same model and tokens, and torch's fused AdamW with the same clipping; the faster way of its
    experts."""
    import torch
    import transformers

    from megatron_bar.models.shards import save_folder
    from megatron_bar.weights.manifest import Manifest

    transformers.utils.logging.disable_progress_bar()
    manifest = Manifest(family=ours.model.shape.model_type, kind="expert")
    save_folder(ours.model, folder / "model", companions_from=folder, manifest=lambda *_: manifest)
    experts = ours.model.shape.num_experts

    def build(implementation: str) -> Callable[[], float]:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder / "model", dtype=ours.model.config.params_dtype, experts_implementation=implementation
        ).to(ours.ids.device)
        mask = torch.zeros(experts, 1, 1, device=ours.ids.device)
        mask[-1] = 1
        for name, param in model.named_parameters():
            param.requires_grad_(".experts." in name or ".gate." in name)
            if ".experts." in name:
                param.register_hook(lambda gradient: gradient * mask.to(gradient.dtype))
        trained = [param for param in model.parameters() if param.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

        def step() -> float:
            optimizer.zero_grad()
            logits = model(ours.ids).logits.float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ours.labels.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            return float(loss.detach())

        return step

    built = {name: build(name) for name in ("eager", "grouped_mm")}
    for step in built.values():
        step()
    fastest = {name: min(times) for name, times in alternate(built, 2).items()}
    best = min(fastest, key=fastest.get)
    print(
        f"transformers' experts: {', '.join(f'{name} {1e3 * s:.0f} ms' for name, s in fastest.items())}; "
        f"{best} is compared"
    )
    return build(best)


def peak(experts: int, dtype: str, way: str) -> float:
    """Bytes that three steps take at their peak, model included."""
    from megatron_bar.parallel.state import distributed

    with distributed():
        import megatron.core.optimizer  # noqa: F401  so that the code itself is there before

        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
        before = memory("VmRSS")
        step = ours(way, experts, dtype)
        for _ in range(3):
            step()
        return memory("VmHWM") - before


def memory(what: str) -> float:
    """In bytes, of /proc/self/status."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)[1])


def in_a_process(experts: int, dtype: str, way: str) -> float:
    command = [sys.executable, __file__, "--memory", str(experts), dtype, way]
    return json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
    )


if __name__ == "__main__":
    main()
