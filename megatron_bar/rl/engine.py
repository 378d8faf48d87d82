"""Where answers come from: the weights that train, or a process of its own (vLLM on a cluster).

An engine is told when weights have changed (`sync`), is asked for answers (`start`), and can say in what it differs from the
trainer (`difference`) when the log-probabilities of the two do. All calls are collective.
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

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

from megatron_bar.data.chat import ChatFormat
from megatron_bar.errors import BarError, require_at_least
from megatron_bar.models.build import LanguageModel
from megatron_bar.models.sampler import Completion, Sampler, stop_at, through_stages
from megatron_bar.models.shards import save_folder
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import on_rank_zero
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.manifest import Manifest
from megatron_bar.weights.writer import WriteOptions


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    name: Literal["own", "vllm", "transformers"] = "own"
    """own: the sampler in the training processes. The others run beside them, on rank 0's machine."""
    python: str | None = None
    """The Python that has the engine: vLLM brings its own torch and wants an environment of its own. None: this one."""
    devices: str | None = None
    """The GPUs that it sees (CUDA_VISIBLE_DEVICES); None: those of rank 0."""
    tensor: int = 1
    """vLLM's tensor parallelism."""
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
    def sync(self) -> None:
        """Makes the trainer's weights the ones that answer."""

    def start(self, prompts: list[list[int]], params: SamplingParams, *, seed: int) -> Callable[[], list[Completion]]:
        """Begins an answer to each prompt; what is returned waits for them. Until then, no other call."""

    def changed(self) -> list[str]:
        """Tensors of the trainer that are not what they were at `sync`, where that costs next to nothing to say."""

    def difference(self, ids: list[int]) -> str:
        """In which tensor or layer it differs most from the trainer, as far as it can tell; ``ids``: a sequence to try."""

    def close(self) -> None: ...


class OwnSampler:
    """The trainer's own weights; answers are there when `start` returns."""

    def __init__(self, trainer: Trainer, chats: ChatFormat):
        self.model, self.decode = trainer.model, chats.tokenizer.decode
        self.sampler = Sampler(trainer.model, eos_ids=chats.stop_ids, pad_id=chats.tokenizer.pad_id)

    def sync(self) -> None:
        self.weights = fingerprints(self.model)

    def start(self, prompts: list[list[int]], params: SamplingParams, *, seed: int) -> Callable[[], list[Completion]]:
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
        now = fingerprints(self.model)
        return _union([name for name, value in self.weights.items() if now[name] != value])

    def difference(self, ids: list[int]) -> str:
        if changed := self.changed():
            return f"changed since the answers were sampled: {', '.join(changed[:3])}"
        return f"no tensor changed; {worst_layer(self.model, ids)}"

    def close(self) -> None:
        pass


def fingerprints(model: LanguageModel) -> dict[str, float]:
    """A sum of every parameter of this rank, by the folder's name: a change shows."""
    ops = model.weight_ops().values()
    return {
        op.names[0]: float(param.detach().double().sum()) for (_, param), op in zip(model.named_parameters(), ops, strict=True)
    }


def _union(mine: list) -> list:
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return list(dict.fromkeys(item for part in everyone for item in part))


@torch.no_grad()
def worst_layer(model: LanguageModel, ids: list[int]) -> str:
    """Where a pass token by token through the cache leaves the pass over the whole sequence ``ids``. Collective."""
    first = model.decoder.layers[0].layer_number
    tensor, device = parallel_state.get_tensor_model_parallel_world_size(), cpu.device()
    seen: list[list[Tensor]] = [[] for _ in model.decoder.layers]

    def keep(number: int):
        def hook(_, __, out) -> None:
            hidden = out[0] if isinstance(out, tuple) else out
            whole = gather_from_sequence_parallel_region(hidden) if model.config.sequence_parallel else hidden
            seen[number].append(whole[:, 0].float())

        return hook

    # Filled up to what sequence parallelism can cut; each token of the second pass is that many rows, of which one counts.
    length = len(ids)
    whole = torch.tensor([ids + [ids[-1]] * (-length % tensor)], device=device)
    hooks = [layer.register_forward_hook(keep(number)) for number, layer in enumerate(model.decoder.layers)]
    training = model.training
    model.eval()
    try:
        through_stages(model, whole, torch.arange(whole.shape[1], device=device)[None])
        expected = [parts.pop()[:length] for parts in seen]
        cache = model.new_cache(rows=tensor, max_length=length)
        for position, token in enumerate(ids):
            through_stages(
                model,
                torch.full((1, tensor), token, device=device),
                torch.full((1, tensor), position, device=device),
                cache=cache,
            )
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    apart = [
        (first + number - 1, ((torch.stack([row[0] for row in rows]) - want).norm() / want.norm()).item())
        for number, (rows, want) in enumerate(zip(seen, expected, strict=True))
    ]
    layers = sorted(_union(apart))
    rounding = 100 * torch.finfo(model.config.params_dtype).eps
    layer, by = next((pair for pair in layers if pair[1] > rounding), max(layers, key=lambda pair: pair[1]))
    return f"with the cache, model.layers.{layer} is the first to differ, by {by:.1g} of its output"


class EngineProcess:
    """An engine of engine_server.py, on rank 0; the weights reach it as a Hugging Face folder."""

    def __init__(self, trainer: Trainer, chats: ChatFormat, config: EngineConfig, params: SamplingParams, *, folder: Path):
        """``folder``: where weights are handed over; gone when they are loaded."""
        self.trainer, self.folder, self.version, self.config = trainer, folder, 0, config
        self.stop_ids, self.pad_id = sorted(chats.stop_ids), chats.tokenizer.pad_id
        self.thread = ThreadPoolExecutor(1)
        self.process = None
        options = {"tensor": config.tensor, "memory": config.memory, "stop": list(params.stop), "slots": params.slots}
        on_rank_zero(lambda: self._begin(options))

    def _begin(self, options: dict) -> None:
        # What torchrun and this project tell their own processes is not meant for the engine's.
        ours = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "PYTHONPATH")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        if self.config.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.config.devices
        script = Path(__file__).with_name("engine_server.py")
        python = self.config.python or sys.executable
        command = [python, "-P", str(script), self.config.name, json.dumps(options)]  # -P: the files beside it are no modules
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
            )
        except OSError as error:
            raise BarError(f"engine {self.config.name}: {python}: not runnable: {error.strerror}") from None

    def _ask(self, call: str, **given) -> dict:
        """On rank 0 alone."""
        try:
            self.process.stdin.write(json.dumps({"call": call, "given": given}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BarError(f"engine {self.config.name}: its process ended with status {self.process.wait()} during {call}")
        answer = json.loads(line)
        if "error" in answer:
            raise BarError(f"engine {self.config.name}: {call}: {' '.join(answer['error'].split())}")
        if answer["version"] != self.version:
            raise BarError(f"engine {self.config.name}: out of step: holds weights {answer['version']}, expected {self.version}")
        return answer["result"]

    def sync(self) -> None:
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
        what = {"manifest": lambda *_: manifest, "config": self.trainer.written, "options": WriteOptions(verify="none")}
        save_folder(model, self.folder, companions_from=self.trainer.source, **what)

    def start(self, prompts: list[list[int]], params: SamplingParams, *, seed: int) -> Callable[[], list[Completion]]:
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
        return lambda: [Completion(**found) for found in on_rank_zero(lambda: pending.result())]

    def changed(self) -> list[str]:
        return []

    def difference(self, ids: list[int]) -> str:
        """By tensor sums against a folder written now; an engine that fuses its tensors tells nothing."""
        theirs = on_rank_zero(lambda: self._ask("sums"))
        if not theirs:
            return f"{self.config.name} cannot be asked for its tensors"
        self._write()

        def apart() -> str:
            folder, by = Folder.open(self.folder), {}
            for name in folder.tensors:
                mine = float(folder.read(name).double().sum())
                by[name] = abs(mine - theirs.get(name, float("inf"))) / (1 + abs(mine))
            worst = max(by, key=by.get)
            return f"worst tensor in the engine: {worst}" if by[worst] > 1e-9 else "its tensors are the trainer's"

        try:
            return on_rank_zero(apart)
        finally:
            on_rank_zero(lambda: shutil.rmtree(self.folder, ignore_errors=True))

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


def build_engine(config: EngineConfig, trainer: Trainer, chats: ChatFormat, params: SamplingParams, *, folder: Path) -> Engine:
    if config.name == "own":
        return OwnSampler(trainer, chats)
    return EngineProcess(trainer, chats, config, params, folder=folder)
