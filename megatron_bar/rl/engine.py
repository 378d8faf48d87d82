"""Where answers come from: the weights that train, or a process of its own (vLLM on a cluster).

An engine is told when weights have changed (`sync`), is asked for answers (`start`), and can say in what it
differs from the trainer (`difference`) when the log-probabilities of the two do. All calls are collective.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch.distributed as dist

from megatron_bar.data.chat import ChatFormat
from megatron_bar.errors import BarError, require_at_least
from megatron_bar.models.build import LanguageModel
from megatron_bar.models.sampler import Completion, Sampler, stop_at
from megatron_bar.models.shards import save_folder
from megatron_bar.parallel.state import on_rank_zero
from megatron_bar.rl.cache_check import union, worst_layer
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.manifest import Manifest
from megatron_bar.weights.writer import WriteOptions


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Which engine answers, and where it runs."""

    name: Literal["own", "vllm", "transformers"] = "own"
    """Engine: own is the trainer's sampler; the others run beside the trainer, on rank 0's machine."""
    python: str | None = None
    """Python that has the engine: vLLM brings its own torch and wants its own environment. None: this one."""
    devices: str | None = None
    """GPUs that it sees (CUDA_VISIBLE_DEVICES); None: those of rank 0."""
    tensor: int = 1
    """Tensor parallelism of vLLM."""
    memory: float = 0.9
    """Share of the GPUs' memory that vLLM may take."""

    def __post_init__(self):
        require_at_least("engine", self, 1, "tensor")
        if not 0 < self.memory <= 1:
            raise BarError(f"engine: memory must be above 0 and at most 1, got {self.memory}")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How answers are drawn."""

    max_new_tokens: int
    temperature: float
    stop: tuple[str, ...]
    slots: int


class Engine(Protocol):
    """Who answers."""

    def sync(self) -> None:
        """Makes the trainer's weights the ones that answer."""

    def start(
        self, prompts: list[list[int]], params: SamplingParams, *, seed: int
    ) -> Callable[[], list[Completion]]:
        """Begins an answer to each prompt; what is returned waits for them. Until then, no other call."""

    def changed(self) -> list[str]:
        """Returns tensors of the trainer that changed since `sync`, where that is cheap to say."""

    def difference(self, ids: list[int]) -> str:
        """Returns in which tensor or layer it differs most from the trainer, as far as it can tell.

        ``ids``: a sequence to try.
        """

    def close(self) -> None:
        """Ends what runs beside the trainer."""


class OwnSampler:
    """The trainer's own weights; answers are there when `start` returns."""

    def __init__(self, trainer: Trainer, chats: ChatFormat):
        self.model = trainer.model
        self.decode = chats.tokenizer.decode
        self.sampler = Sampler(trainer.model, eos_ids=chats.stop_ids, pad_id=chats.tokenizer.pad_id)
        self.synced: dict[str, float] = {}
        """Fingerprints of the weights at the last `sync`."""

    def sync(self) -> None:
        """Takes the fingerprints; the weights are there already."""
        self.synced = fingerprints(self.model)

    def start(
        self, prompts: list[list[int]], params: SamplingParams, *, seed: int
    ) -> Callable[[], list[Completion]]:
        """Answers at once."""
        done = self.sampler.generate(
            prompts,
            max_new_tokens=params.max_new_tokens,
            temperature=params.temperature,
            seed=seed,
            slots=params.slots,
            stop=stop_at(params.stop, self.decode) if params.stop else None,
        )
        return lambda: done

    def changed(self) -> list[str]:
        """Returns the tensors whose fingerprints are others than at the last `sync`, on any rank."""
        now = fingerprints(self.model)
        return union([name for name, value in self.synced.items() if now[name] != value])

    def difference(self, ids: list[int]) -> str:
        """Returns what changed, or where passes with and without the cache part."""
        if changed := self.changed():
            return f"changed since the answers were sampled: {', '.join(changed[:3])}"
        return f"no tensor changed; {worst_layer(self.model, ids)}"

    def close(self) -> None:
        """Does nothing: nothing runs beside the trainer."""


def fingerprints(model: LanguageModel) -> dict[str, float]:
    """Returns a sum of every parameter of this rank, by the folder's name: a change shows."""
    return {op.names[0]: float(param.detach().double().sum()) for _, param, op in model.parameters_with_ops()}


class EngineProcess:
    """An engine of engine_server.py, on rank 0; the weights reach it as a Hugging Face folder.

    ``folder``: where they are handed over; gone when they are loaded.
    """

    def __init__(
        self,
        trainer: Trainer,
        chats: ChatFormat,
        config: EngineConfig,
        params: SamplingParams,
        *,
        folder: Path,
    ):
        self.trainer = trainer
        self.folder = folder
        self.config = config
        self.version = 0
        """Number of the weights that it should have: how often they were handed over."""
        self.stop_ids = sorted(chats.stop_ids)
        self.pad_id = chats.tokenizer.pad_id
        self.thread = ThreadPoolExecutor(1)
        self.process = None
        options = {
            "tensor": config.tensor,
            "memory": config.memory,
            "stop": list(params.stop),
            "slots": params.slots,
        }
        on_rank_zero(lambda: self._begin(options))

    def _begin(self, options: dict) -> None:
        # What torchrun and this project tell their own processes is not meant for the engine's.
        ours = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "PYTHONPATH")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        if self.config.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.config.devices
        script = Path(__file__).with_name("engine_server.py")
        python = self.config.python or sys.executable
        # -P: the files beside the script are no modules of its own.
        command = [python, "-P", str(script), self.config.name, json.dumps(options)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env=environment,
            )
        except OSError as error:
            raise BarError(f"engine {self.config.name}: {python}: not runnable: {error.strerror}") from None

    def _ask(self, call: str, **given) -> dict:
        """Makes one call and waits for its result; on rank 0 alone."""
        try:
            self.process.stdin.write(json.dumps({"call": call, "given": given}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self.process.wait()
            raise BarError(f"engine {self.config.name}: its process ended with status {status} during {call}")
        answer = json.loads(line)
        if "error" in answer:
            raise BarError(f"engine {self.config.name}: {call}: {' '.join(answer['error'].split())}")
        if answer["version"] != self.version:
            raise BarError(
                f"engine {self.config.name}: out of step: "
                f"holds weights {answer['version']}, expected {self.version}"
            )
        return answer["result"]

    def sync(self) -> None:
        """Hands the weights over and waits until they are loaded."""
        self._write()
        self.version += 1
        try:
            on_rank_zero(lambda: self._ask("load", folder=str(self.folder), version=self.version))
        finally:
            on_rank_zero(lambda: shutil.rmtree(self.folder, ignore_errors=True))

    def _write(self) -> None:
        on_rank_zero(lambda: shutil.rmtree(self.folder, ignore_errors=True))
        model = self.trainer.model
        manifest = Manifest(family=model.shape.family, kind="dense")  # nobody's folder but the engine's
        save_folder(
            model,
            self.folder,
            companions_from=self.trainer.source,
            manifest=lambda *_: manifest,
            config=self.trainer.written,
            options=WriteOptions(verify="none"),
        )

    def start(
        self, prompts: list[list[int]], params: SamplingParams, *, seed: int
    ) -> Callable[[], list[Completion]]:
        """Asks in a thread, while the trainer goes on."""
        given = {
            "prompts": prompts,
            "max_new_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "seed": seed,
            "stop": list(params.stop),
            "stop_ids": self.stop_ids,
            "pad_id": self.pad_id,
        }
        pending = self.thread.submit(self._ask, "generate", **given) if dist.get_rank() == 0 else None
        return lambda: [Completion(**answer) for answer in on_rank_zero(lambda: pending.result())]

    def changed(self) -> list[str]:
        """Returns nothing: to ask would cost a folder."""
        return []

    def difference(self, ids: list[int]) -> str:
        """Compares tensor sums with those of a folder written now; an engine tells none of fused tensors."""
        theirs = on_rank_zero(lambda: self._ask("sums"))
        if not theirs:
            return f"{self.config.name} cannot be asked for its tensors"
        self._write()

        def apart() -> str:
            folder = Folder.open(self.folder)
            by = {}
            for name in folder.tensors:
                mine = float(folder.read(name).double().sum())
                by[name] = abs(mine - theirs.get(name, float("inf"))) / (1 + abs(mine))
            worst = max(by, key=by.get)
            return (
                f"worst tensor in the engine: {worst}"
                if by[worst] > 1e-9
                else "its tensors are the trainer's"
            )

        try:
            return on_rank_zero(apart)
        finally:
            on_rank_zero(lambda: shutil.rmtree(self.folder, ignore_errors=True))

    def close(self) -> None:
        """Ends the process."""
        self.thread.shutdown(wait=False, cancel_futures=True)
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


def build_engine(
    config: EngineConfig, trainer: Trainer, chats: ChatFormat, params: SamplingParams, *, folder: Path
) -> Engine:
    """Builds the engine of ``config``; ``folder``: where weights may be handed over. Collective."""
    if config.name == "own":
        return OwnSampler(trainer, chats)
    return EngineProcess(trainer, chats, config, params, folder=folder)
