"""The parts of gpu_check.py that run models of 7B's width: training, router, sampler.

A part is given ``record``, to call with a figure once it is known, and a folder for its files.
"""

import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

from gpu_machine import Record, has_gpu, need, product_rate, seconds

LAYERS = 8
"""Layers out of 7B's 32: what one card holds with the optimizer's state of two experts."""
ROUTED = 2
"""Layers of the router's part: a folder of five experts is written and read, on a disk that may be slow."""


def shape(layers: int, experts: int, length: int):
    """Returns a config of the published model's width with few layers; small without a GPU."""
    from megatron_bar.recipes.olmo2_7b import SHAPE

    small = {"hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "num_kv_heads": 4}
    small = {} if has_gpu() else small | {"vocab_size": 512, "pad_token_id": 0, "eos_token_id": 1}
    layers = layers if has_gpu() else min(layers, 2)
    return replace(SHAPE, num_layers=layers, max_positions=length, **small).with_experts(experts)


@contextmanager
def alone() -> Iterator[Path]:
    """One process in a group of its own, and a folder for what it writes."""
    from megatron_bar.parallel.state import distributed

    with distributed(), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def random_model(of):
    """A model with random weights in no particular layout."""
    import torch

    from megatron_bar.models.build import build_model
    from megatron_bar.parallel.state import ParallelConfig, set_layout

    set_layout(ParallelConfig(), of, seed=0)
    model = build_model(of, ParallelConfig())
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() > 1:
                param.normal_(std=0.02)
    return model


def write(model, path: Path) -> None:
    from megatron_bar.models.shards import save_folder
    from megatron_bar.weights.manifest import Manifest

    kind = "expert" if model.shape.num_experts == 2 else "merged"
    save_folder(
        model,
        path,
        companions_from=path.parent,
        manifest=lambda *_: Manifest(family=model.shape.model_type, kind=kind),
    )


def batches(count: int, length: int, vocabulary: int) -> list:
    """``count`` rows of ``length`` tokens, documents of 100 to 1,500 packed side by side."""
    import torch

    from megatron_bar.data.packing import Batch

    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        sizes, left = [], length
        while left:
            size = min(left, int(torch.randint(100, 1500, (), generator=generator)))
            sizes.append(size)
            left -= size
        ids = torch.randint(0, vocabulary, (1, length), generator=generator)
        positions = torch.cat([torch.arange(size) for size in sizes])[None]
        documents = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[None]
        made.append(Batch(ids=ids, positions=positions, labels=ids.roll(-1, 1), documents=documents))
    return made


def train(record: Record, out: Path) -> None:
    """Two experts of 7B's width, the anchor frozen, packed rows of 4,096, eight micro-batches a step."""
    import torch

    from megatron_bar.recipes import stages
    from megatron_bar.training.objective import LanguageModelling
    from megatron_bar.training.trainer import Trainer

    length, count = (4096, 8) if has_gpu() else (128, 2)
    of = shape(LAYERS, 2, length)
    stage = replace(stages.sft(sequence=length, batch=count, steps=20), router_z_loss=0.0)
    expected = planned(of, stage)
    need(expected)
    record("layers", of.num_layers, "of 32")
    with alone() as folder:
        model = random_model(of)
        nbytes = sum(param.numel() * param.element_size() for param in model.parameters())
        start = time.perf_counter()
        write(model, folder / "source")
        record("folder written and read back", nbytes / 1e9 / (time.perf_counter() - start), "GB/s")
        del model
        torch.cuda.empty_cache()
        start = time.perf_counter()
        trainer = Trainer(folder / "source", stage, steps=stage.steps)
        record("folder proven, loaded, frozen part hashed", time.perf_counter() - start, "s")
        rows, objective = batches(count, length, of.vocab_size), LanguageModelling(0.0)
        if has_gpu():
            torch.cuda.reset_peak_memory_stats()
        took = seconds(lambda: trainer.step(rows, objective), rounds=5)
        record("SFT step of 2 experts", 1000 * took, "ms")
        record("SFT tokens", count * length / took, "tokens/s")
        rate = done(of, "sft", rows) / took
        record("SFT rate", rate / 1e12, "TFLOP/s")
        record("SFT rate over a bare product's", rate / product_rate(), "", 0.5 if has_gpu() else None)
        memory(record, expected)
        one = rows[:1]
        few = seconds(lambda: trainer.step(one, objective), rounds=3)
        record("of that: one micro-batch, forward and backward", 1000 * (took - few) / (count - 1), "ms")
        record("of that: update and the rest", 1000 * (few - (took - few) / (count - 1)), "ms")
        waits(record, lambda: trainer.step(rows, objective))
        kernels(record, lambda: trainer.step(rows, objective), out / "train_kernels.txt")
        start = time.perf_counter()
        trainer.save(folder / "trained", manifest=lambda *_: trained(of))
        record("folder certified and written", nbytes / 1e9 / (time.perf_counter() - start), "GB/s")


def trained(of):
    from megatron_bar.weights.manifest import Manifest

    return Manifest(family=of.family, kind="expert")


def done(of, policy: str, rows: list) -> float:
    """Operations of a step, by formula; what is computed again does not count."""
    from megatron_bar.training import flops
    from megatron_bar.weights.groups import POLICIES

    work = {
        "tokens": sum(row.ids.numel() for row in rows),
        "pairs": sum(int((row.positions + 1).sum()) for row in rows),
    }
    return flops.forward(of)(**work) + flops.backward(of, POLICIES[policy])(**work)


def planned(of, stage) -> int:
    """Returns the bytes that a step takes at its peak by the planner."""
    from megatron_bar.data.sources import Source
    from megatron_bar.planner.usage import Machine, PlannedStage, usage
    from megatron_bar.recipes.recipe import Training

    run = Training(stage=stage, data=(Source(path=Path("none.jsonl"), kind="chat"),))
    what = PlannedStage(name=stage.name, run=run, shape=of)
    return usage(what, stage, Machine(gpus=1, memory=80 * 10**9)).total


def memory(record: Record, expected: int) -> None:
    """Records what a step took at its peak, against the planner's ``expected`` bytes."""
    import torch

    record("memory by the planner", expected / 1e9, "GB")
    if has_gpu():
        peak = torch.cuda.max_memory_allocated()
        record("memory at the peak", peak / 1e9, "GB")
        record("memory reserved at the peak", torch.cuda.max_memory_reserved() / 1e9, "GB")
        record("memory over the planner's", peak / expected, "", 1.1, at_most=True)


def waits(record: Record, step: Callable[[], object]) -> None:
    """Where a step's host waits for the GPU."""
    import torch

    if not has_gpu():
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    said = [
        w for w in caught if "synchronizing" in str(w.message) and "torch/cuda" not in w.filename
    ]  # the switch itself waits
    found = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in said)
    record("waits for the GPU in a step", sum(found.values()), "", 3, at_most=True)
    for place, times in found.most_common(12):
        record(f"wait at {place}", times)


def kernels(record: Record, step: Callable[[], object], file: Path, longest: int = 10) -> None:
    """The kernels that a step spends most time in, and the share of it in which the GPU works."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not has_gpu():
        return
    step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        step()
        torch.cuda.synchronize()
    wall = time.perf_counter() - start
    ran = [event for event in seen.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    ran.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in ran)
    record("kernels in a step", sum(event.count for event in ran))
    record("GPU at work in a step", total / 1e6 / wall, "of the time")
    for event in ran[:longest]:
        record(f"  {event.key[:54]}", 100 * event.self_device_time_total / total, f"% x{event.count}")
    file.write_text(
        seen.key_averages().table(sort_by="self_device_time_total", row_limit=60, max_name_column_width=100)
    )


def route(record: Record, out: Path) -> None:
    """The router's step of five experts, rows of 2,048, one and four together."""
    import torch

    from megatron_bar.recipes import stages
    from megatron_bar.training.trainer import Trainer

    length, count = (2048, 8) if has_gpu() else (128, 2)
    of = shape(ROUTED, 5, length)
    stage = stages.route(sequence=length, batch=count, steps=20, micro_batch=4 if has_gpu() else 1)
    stage = replace(stage, router_z_loss=0.0)
    need(planned(of, stage))
    record("layers", of.num_layers, "of 32")
    rows = batches(count, length, of.vocab_size)
    with alone() as folder:
        model = random_model(of)
        write(model, folder / "source")
        del model
        torch.cuda.empty_cache()
        trainer = Trainer(folder / "source", stage, steps=stage.steps)
        for micro_batch in sorted({1, stage.micro_batch}):
            route_steps(record, trainer, rows, micro_batch)


def route_steps(record: Record, trainer, rows: list, micro_batch: int) -> None:
    """Records what a step takes whose ``rows`` are passed ``micro_batch`` together."""
    from megatron_bar.training.objective import LanguageModelling

    tokens = sum(row.ids.numel() for row in rows)
    rows = [joined(part) for part in grouped(rows, micro_batch)]
    took = seconds(lambda: trainer.step(rows, LanguageModelling(0.0)), rounds=5)
    rate = done(trainer.model.shape, "route", rows) / took
    record(f"router step of 5 experts, micro-batch {micro_batch}", 1000 * took, "ms")
    record(f"router tokens, micro-batch {micro_batch}", tokens / took, "tokens/s")
    record(f"router rate over a bare product's, micro-batch {micro_batch}", rate / product_rate())


def grouped(rows: list, size: int) -> list[list]:
    return [rows[n : n + size] for n in range(0, len(rows), size)]


def joined(rows: list):
    import torch

    names = ("ids", "positions", "labels", "documents")
    return type(rows[0])(**{name: torch.cat([getattr(row, name) for row in rows]) for name in names})


def sampler(record: Record, out: Path) -> None:
    """Two experts of 7B's width; a token of 32 layers takes what one of 8 does and 24 times what a layer
    adds."""
    import torch

    need(0)
    with alone():
        took: dict[tuple, float] = {}
        for layers in (LAYERS // 2, LAYERS):
            model = random_model(shape(layers, 2, 1024))
            for slots, cudnn, graphs in product(
                (16, 64), (True, False), (True, False) if has_gpu() else (True,)
            ):
                if layers == LAYERS or graphs:
                    took[layers, slots, cudnn, graphs] = token_seconds(model, slots, cudnn, graphs)
            del model
            torch.cuda.empty_cache()
        for (layers, slots, cudnn, graphs), each in took.items():
            if layers < LAYERS:
                continue
            launched = "graphs" if graphs else "kernel by kernel"
            how = f"{slots} slots, cuDNN {'on' if cudnn else 'off'}, {launched}"
            record(f"a token, {how}", 1000 * each, "ms")
            if (few := took.get((LAYERS // 2, slots, cudnn, graphs))) is not None:
                deep = each + (32 - LAYERS) * max(0.0, each - few) / (LAYERS - LAYERS // 2)
                target = 3000 if slots == 64 and has_gpu() else None
                record(f"tokens a second of 32 layers, {how}", slots / deep, "tokens/s", target)


def token_seconds(model, slots: int, cudnn: bool, graphs: bool) -> float:
    """Returns what each further token of ``slots`` answers takes."""
    import torch

    from megatron_bar.models.sampler import Sampler

    prompt, new = (64, 400 if graphs else 60) if has_gpu() else (8, 8)
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    draws = Sampler(model, eos_ids=set(), pad_id=0, graphs=graphs)

    def answer(tokens: int) -> None:
        prompts = [[5 + n] * prompt for n in range(slots)]
        draws.generate(prompts, max_new_tokens=tokens, slots=slots)

    answer(4)
    first = seconds(lambda: answer(2), rounds=3, warm=0)
    return (seconds(lambda: answer(new), rounds=1, warm=0) - first) / (new - 2)
