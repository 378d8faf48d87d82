"""Engines in processes of their own: started, handed the weights, asked, started anew.

They load the folder that the stage starts from, and before each round the tensors that train (handover.py).
Each compares what arrived with the trainer's checksums, and then what it holds, in whatever form, with what
arrived.
"""

import os
import shutil
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_bar.data.chat import ChatFormat
from megatron_bar.errors import BarError
from megatron_bar.models.sampler import Completion
from megatron_bar.parallel.state import on_rank_zero
from megatron_bar.rl.engine import Engine, EngineConfig, OwnSampler, SamplingParams
from megatron_bar.rl.engine_process import EngineEnded, EngineProcess, Hello
from megatron_bar.rl.handover import Handover
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hf_config import ModelConfig
from megatron_bar.weights.safetensors_io import ITEMSIZE

AHEAD = 2
"""Prompts that an engine has at first, as a multiple of its slots: no slot is to wait for the next one."""


class Engines:
    """The engines of a stage; ``place``: a folder of links that they load, gone when they are."""

    def __init__(
        self,
        trainer: Trainer,
        chats: ChatFormat,
        config: EngineConfig,
        params: SamplingParams,
        *,
        place: Path,
    ):
        self.trainer = trainer
        self.config = config
        self.place = place
        self.stop_ids = sorted(chats.stop_ids)
        self.pad_id = chats.tokenizer.pad_id
        self.version = 0
        """Number of the weights that they should have: how often they were handed over."""
        self.restarts = 0
        self.handover = Handover(trainer.model, config.handover)
        self.processes: list[EngineProcess] = []
        self.asked: list[list[tuple[int, list[int]]]] = []
        """Prompts that each has had since `start`, with their numbers."""
        self.threads = ThreadPoolExecutor(config.replicas)
        on_rank_zero(lambda: self._begin(params))

    def _begin(self, params: SamplingParams) -> None:
        check_devices(self.config, trainer_devices())
        shape = self.trainer.written
        check_tensor(self.config, shape)
        shutil.rmtree(self.place, ignore_errors=True)
        Folder.open(self.trainer.source).link_to(self.place, shape)
        hello = Hello(
            tensor=self.config.tensor,
            memory=self.config.memory,
            seeded=self.config.seeded,
            slots=params.slots,
            stop=list(params.stop),
            cache_bytes=_cache_bytes(shape, params.slots),
            seed=self.trainer.stage.seed,
            launcher=self._launcher(),
        )
        try:
            for number in range(self.config.replicas):
                # Replicas that draw alike would answer alike.
                own = replace(hello, seed=hello.seed + number)
                self.processes.append(EngineProcess(self.config, own, number))
            for future in [self.threads.submit(self._open, process) for process in self.processes]:
                future.result()
        except BaseException:
            self.close()
            raise

    def _launcher(self) -> int:
        """Number of torchrun's process where there is one and engines see it."""
        beside = self.config.handover is None
        return os.getppid() if beside and "TORCHELASTIC_RUN_ID" in os.environ else 0

    def _open(self, process: EngineProcess) -> None:
        found = process.ask("open", folder=str(self.place))
        check_taken_for(self.config.name, found, self.trainer.written)

    def _update(self, process: EngineProcess) -> None:
        given = {"path": self.handover.file.path, "sums": self.handover.sums, "number": self.version}
        if wrong := process.ask("update", version=self.version, **given):
            raise BarError(
                f"engine {self.config.name}: holds {len(wrong)} tensors otherwise than they came: "
                f"{', '.join(wrong[:3])}"
            )

    def sync(self) -> None:
        """Hands over what trains and waits until every engine has it. Collective."""
        self.version += 1
        self.handover.write()
        on_rank_zero(self._update_all)

    def _update_all(self) -> None:
        futures = [self.threads.submit(self._update, process) for process in self.processes]
        for process, future in zip(self.processes, futures, strict=True):
            self._patiently(process, future)

    def _patiently(
        self, process: EngineProcess, future: Future, again: Callable[[EngineProcess], object] | None = None
    ):
        """Waits for a result; an engine that ended is started anew, with the weights, and asked ``again``."""
        while True:
            try:
                return future.result()
            except EngineEnded as error:
                if self.restarts == self.config.restarts or self.trainer.stop.asked:
                    raise
                self.restarts += 1
                line = f"{error}; started anew ({self.restarts} of {self.config.restarts})"
                print(line, file=sys.stderr, flush=True)
            future = self._renewed(process, again)

    def _renewed(self, process: EngineProcess, again: Callable[[EngineProcess], object] | None) -> Future:
        process.end()
        process.begin()

        def work():
            self._open(process)
            self._update(process)
            return again(process) if again else None

        return self.threads.submit(work)

    def start(
        self, prompts: list[list[int]], params: SamplingParams, *, seed: int
    ) -> Callable[[], list[Completion]]:
        """Asks in threads, while the trainer goes on. Engines get a part of the prompts, and more as they
        answer those: the faster ones more."""
        given = {
            "seed": seed,
            "max_new_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "stop": list(params.stop),
            "stop_ids": self.stop_ids,
            "pad_id": self.pad_id,
        }

        left = _Dealt(prompts, self.config.replicas)
        share = -(-len(prompts) // self.config.replicas)
        if self.config.replicas > 1:
            share = min(share, AHEAD * params.slots)
        self.asked = [[] for _ in self.processes]

        def answers(process: EngineProcess) -> list[tuple[int, dict]]:
            mine = self.asked[process.number]  # all at once where the process was started anew

            def more(count: int) -> list[tuple[int, list[int]]]:
                come = left.take(count)
                mine.extend(come)
                return come

            if not mine and not more(share):
                return []
            return process.ask("generate", version=self.version, prompts=list(mine), more=more, **given)

        futures = [self.threads.submit(answers, process) for process in self.processes]

        def collect() -> list[Completion]:
            done: list = [None] * len(prompts)
            for process, future in zip(self.processes, futures, strict=True):
                for number, answer in self._patiently(process, future, answers):
                    done[number] = Completion(**answer)
            return done

        return lambda: on_rank_zero(collect)

    def changed(self) -> list[str]:
        """Returns nothing: what is compared here is what arrived."""
        return []

    def difference(self, ids: list[int]) -> str:
        """Returns which tensors changed since they were handed over, or are held otherwise. Collective."""
        changed = self.handover.changed()

        def said() -> str:
            if changed:
                return f"changed since the answers were sampled: {', '.join(changed[:3])}"
            for process in self.processes:
                if wrong := process.ask("wrong"):
                    return f"worst tensors in the engine: {', '.join(wrong[:3])}"
            return f"the tensors of {self.config.name} are the trainer's"

        return on_rank_zero(said)

    def close(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            process.end()
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.handover.close()
        if dist.get_rank() == 0:
            shutil.rmtree(self.place, ignore_errors=True)


class _Dealt:
    """Prompts with their numbers, for several threads; dealt out like cards: answers to one prompt, which
    follow each other, are about as long."""

    def __init__(self, prompts: list[list[int]], players: int):
        cards = list(enumerate(prompts))
        self.left = deque(card for player in range(players) for card in cards[player::players])
        self.lock = threading.Lock()

    def take(self, count: int) -> list[tuple[int, list[int]]]:
        with self.lock:
            return [self.left.popleft() for _ in range(min(count, len(self.left)))]


def build_engine(
    config: EngineConfig, trainer: Trainer, chats: ChatFormat, params: SamplingParams, *, place: Path
) -> Engine:
    """Builds the engine of ``config``; ``place``: where a folder of links may stand meanwhile. Collective."""
    if config.name == "own":
        return OwnSampler(trainer, chats)
    return Engines(trainer, chats, config, params, place=place)


def _cache_bytes(shape: ModelConfig, slots: int) -> int:
    width = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    return slots * shape.max_positions * width * ITEMSIZE[shape.dtype]


def check_taken_for(engine: str, found: dict, shape: ModelConfig) -> None:
    """Raises where an engine takes the model for another than ``shape``."""
    if len(set(shape.active)) > 1:
        raise BarError(f"engine {engine}: expected as many active experts in every layer, got {shape.active}")
    wanted = {"dtype": shape.dtype, "vocab_size": shape.vocab_size, "rope_theta": shape.rope_theta}
    wanted["rope_factor"] = shape.rope_scaling.factor if shape.rope_scaling else None
    if shape.num_experts:
        wanted["num_experts_per_tok"] = shape.active[0]
    for name, value in wanted.items():
        if found[name] != value:
            raise BarError(f"engine {engine}: {name} expected {value}, the engine has {found[name]}")
    if found["max_length"] > shape.max_positions:
        raise BarError(
            f"engine {engine}: max_length expected at most {shape.max_positions}, got {found['max_length']}"
        )


def check_tensor(config: EngineConfig, shape: ModelConfig) -> None:
    """Raises where vLLM would be cut over more GPUs than its class of the model takes."""
    if config.name == "vllm" and shape.form.tensor_within_experts and config.tensor > shape.num_experts:
        raise BarError(
            f"engine vllm: tensor expected at most {shape.num_experts}, the experts of {shape.model_type}, "
            f"got {config.tensor}"
        )


def trainer_devices() -> tuple[str, ...]:
    """Returns the GPUs of this machine's ranks."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return tuple(visible[: min(count, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))])


def check_devices(config: EngineConfig, trains: tuple[str, ...]) -> None:
    """Raises where vLLM would take nearly all the memory of GPUs that also train."""
    shared = [d for d in config.devices or trains if d in trains and not config.launch]
    if config.name == "vllm" and shared and config.memory >= 0.9:
        raise BarError(
            f"engine vllm: memory {config.memory} of GPU {','.join(shared)}, which trains too: "
            "expected other GPUs (engine.devices), or less memory (engine.memory)"
        )
