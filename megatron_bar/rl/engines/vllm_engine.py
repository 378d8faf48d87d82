"""vLLM as an engine, in this process where one GPU (or a CPU) is enough, else with workers of its own."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import vllm

SIGN = 1.0
"""Seconds between two signs of life while it answers."""


class VLLM:
    """Answers with the weights of a folder, and with what arrives in their place."""

    def __init__(self, options: dict):
        self.options = options
        self.folder = None
        self.model = None
        self.asked = 0

    def open(self, folder: str) -> dict:
        """Loads ``folder``; returns what the engine takes the model for."""
        options = self.options
        on_gpu = torch.cuda.is_available()
        if not on_gpu:  # the space of keys and values, whole GiB
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(math.ceil(options["cache_bytes"] / 2**30)))
        self.folder = folder
        config = json.loads((Path(folder) / "config.json").read_text())
        self.model = vllm.LLM(
            model=folder,
            skip_tokenizer_init=not options["stop"],
            dtype=config.get("dtype") or config["torch_dtype"],  # vLLM would run fp32 in bf16
            tensor_parallel_size=options["tensor"],
            distributed_executor_backend="uni" if options["tensor"] == 1 else "mp",
            gpu_memory_utilization=options["memory"],
            max_num_seqs=options["slots"],
            enforce_eager=not on_gpu,
            worker_extension_cls="vllm_weights.Weights",
            logprobs_mode="processed_logprobs",  # at the temperature they are drawn at
            enable_prefix_caching=False,  # what it keeps belongs to the weights before
            generation_config="vllm",
            disable_log_stats=True,
            seed=options["seed"],
        )
        return self._all("taken_for")[0]

    def _all(self, method: str, *args) -> list:
        return self.model.collective_rpc(method, args=args)

    def update(self, path: str, sums: dict[str, int]) -> list[str]:
        """Takes the tensors that arrived; returns those that it then holds otherwise."""
        return sorted({name for wrong in self._all("take", path, sums, self.folder) for name in wrong})

    def wrong(self) -> list[str]:
        """Returns the tensors that it holds otherwise than they last arrived."""
        return sorted({name for wrong in self._all("wrong") for name in wrong})

    def generate(
        self, prompts, more: Callable[..., list], *, max_new_tokens, temperature, seed, stop, stop_ids, pad_id
    ) -> list[tuple[int, dict]]:
        """Returns the number of each prompt with its answer, as the fields of a `Completion`.

        ``prompts``: numbers and tokens. ``more`` is told how many answers have ended, and returns further
        prompts (see `Server.more`).
        """
        engine = self.model.llm_engine
        number_of = {}

        def add(number: int, prompt: list[int]) -> None:
            settings = vllm.SamplingParams(
                temperature=temperature,
                max_tokens=max_new_tokens,
                # With a seed of its own a row is drawn by itself, in a Python loop.
                seed=(seed << 24) + number if self.options["seeded"] else None,
                logprobs=0,
                stop=stop or None,
                include_stop_str_in_output=True,
                stop_token_ids=stop_ids,
                detokenize=bool(stop),
            )
            # An id that was never used: those of an earlier call may be remembered.
            number_of[str(self.asked)] = number
            engine.add_request(str(self.asked), {"prompt_token_ids": prompt}, settings)
            self.asked += 1

        for prompt in prompts:
            add(*prompt)
        done = []
        said = time.monotonic()
        while engine.has_unfinished_requests():
            ended = [request for request in engine.step() if request.finished]
            done += [(number_of[r.request_id.split("-")[0]], _completion(r.outputs[0])) for r in ended]
            if ended or time.monotonic() - said > SIGN:
                said = time.monotonic()
                for prompt in more(len(ended), wait=not engine.has_unfinished_requests()):
                    add(*prompt)
        return done


def _completion(out) -> dict:
    ids = list(out.token_ids)
    logprobs = [values[token].logprob for token, values in zip(ids, out.logprobs, strict=True)]
    return {"ids": ids, "logprobs": logprobs, "finished": out.finish_reason == "stop"}
