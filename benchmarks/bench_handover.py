"""The trainer's weights to an engine between two rounds, against a copy of the changed bytes in memory.

What is timed apart: the trainer's part (each tensor once into shared memory, and its checksum), the engine's
part (checksums, loading, comparing what it then holds), and one copy of the same bytes. vLLM where there is
one (``--vllm-python``), else transformers, which goes by way of a folder. FlexOlmo of two experts, fp32,
RLVR's policy.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from bench_rollout import save_tokenizer
from side_by_side import figure, over

ROUNDS = 5
SHAPES = {128: 384, 512: 1536}
"""Hidden width -> FFN width."""


class Ids:
    """A chat format and its tokenizer, whose text is the ids themselves."""

    stop_ids, pad_id = frozenset({1}), 0

    @property
    def tokenizer(self) -> "Ids":
        return self


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm-python", type=Path, default=Path(".venv-vllm/bin/python"), metavar="PYTHON")
    python = parser.parse_args().vllm_python
    from megatron_bar.parallel.state import distributed

    engine = {"name": "vllm", "python": str(python)} if python.exists() else {"name": "transformers"}
    with tempfile.TemporaryDirectory() as place, distributed():
        for hidden in SHAPES:
            measure(Path(place) / str(hidden), hidden, engine)


def measure(place: Path, hidden: int, engine: dict[str, str]) -> None:
    """Prints the seconds of one width."""
    import torch

    from megatron_bar.recipes import stages
    from megatron_bar.rl.apart import Engines
    from megatron_bar.rl.engine import EngineConfig, SamplingParams
    from megatron_bar.training.trainer import Trainer

    make_folder(place, hidden)
    trainer = Trainer(place, stages.rlvr(sequence=64, batch=8), steps=1)
    params = SamplingParams(max_new_tokens=16, temperature=1.0, stop=(), slots=8)
    engines = Engines(
        trainer, Ids(), EngineConfig(**engine), params, place=place.with_name(f"{hidden}-links")
    )
    seconds = {"trainer": [], "engine": [], "copy": []}
    engines.sync()
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        engines.handover.write()
        written = time.perf_counter()
        engines._update_all()
        seconds["engine"].append(time.perf_counter() - written)
        seconds["trainer"].append(written - begin)
        shared = engines.handover.file.tensors
        targets = {name: torch.empty_like(tensor) for name, tensor in shared.items()}
        for _ in range(2):  # the first one makes the pages
            begin = time.perf_counter()
            for name, tensor in shared.items():
                targets[name].copy_(tensor)
        seconds["copy"].append(time.perf_counter() - begin)
    nbytes = sum(tensor.nbytes for tensor in shared.values())
    engines.close()
    parts = ", ".join(f"{name} {median(spent) * 1e3:.1f} ms" for name, spent in seconds.items())
    print(f"handover: {engine['name']}, hidden {hidden}: {nbytes / 1e6:.1f} MB: {parts}")
    both = [a + b for a, b in zip(seconds["trainer"], seconds["engine"], strict=True)]
    ratios = over(both, seconds["copy"])
    figure(f"handover_{engine['name']}_over_copy_{hidden}", ratios, 1.2, at_most=True)
    trainers = over(seconds["trainer"], seconds["copy"])
    figure(f"handover_trainers_part_over_copy_{hidden}", trainers, 1.2, at_most=True)


def make_folder(place: Path, hidden: int) -> None:
    """Writes a model of that width."""
    import transformers

    config = transformers.FlexOlmoConfig(
        vocab_size=1024,
        hidden_size=hidden,
        intermediate_size=SHAPES[hidden],
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        num_experts=2,
        num_experts_per_tok=2,
        pad_token_id=0,
        eos_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    transformers.FlexOlmoForCausalLM(config).save_pretrained(place)
    save_tokenizer(place)


if __name__ == "__main__":
    main()
