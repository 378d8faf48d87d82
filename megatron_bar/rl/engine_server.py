"""An engine in a process and, if need be, a Python environment of its own: vLLM, or transformers where there is no GPU.

Started by engine.py as ``python engine_server.py NAME OPTIONS``; imports nothing of this project. Reads one JSON request a
line on stdin and answers each by one line on stdout: ``load`` (a Hugging Face folder), ``generate``, ``sums`` (of the
weights it holds). Ends when stdin does, so it never outlives who started it.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open


class VLLM:
    """Reads a folder into the running engine (reload_weights); the sampled distribution's log-probabilities."""

    def __init__(self, options: dict):
        import vllm

        self.vllm, self.options, self.model = vllm, options, None

    def load(self, folder: str) -> None:
        if self.model is None:
            self.model = self.vllm.LLM(
                model=folder,
                skip_tokenizer_init=not self.options["stop"],
                tensor_parallel_size=self.options["tensor"],
                gpu_memory_utilization=self.options["memory"],
                logprobs_mode="processed_logprobs",  # at the temperature they are drawn at
                enable_prefix_caching=False,  # what it keeps belongs to the weights before
                generation_config="vllm",
            )
        else:
            self.model.collective_rpc("reload_weights", kwargs={"weights_path": folder})

    def generate(self, prompts, *, max_new_tokens, temperature, seed, stop, stop_ids, pad_id) -> list[dict]:
        settings = [
            self.vllm.SamplingParams(
                temperature=temperature,
                max_tokens=max_new_tokens,
                seed=(seed << 24) + number,
                logprobs=0,
                stop=stop or None,
                include_stop_str_in_output=True,
                stop_token_ids=stop_ids,
                detokenize=bool(stop),
            )
            for number in range(len(prompts))
        ]
        done = self.model.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
        return [self._completion(request.outputs[0]) for request in done]

    @staticmethod
    def _completion(out) -> dict:
        ids = list(out.token_ids)
        logprobs = [values[token].logprob for token, values in zip(ids, out.logprobs, strict=True)]
        return {"ids": ids, "logprobs": logprobs, "finished": out.finish_reason == "stop"}

    def sums(self) -> dict[str, float]:
        return {}  # its tensors are fused and sharded as it likes


class Transformers:
    """``model.generate``, a batch of rows at a time: slow, and runs wherever torch does."""

    def __init__(self, options: dict):
        import torch
        import transformers

        self.torch, self.transformers, self.options = torch, transformers, options
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        transformers.utils.logging.disable_progress_bar()
        self.model = self.tokenizer = None

    def load(self, folder: str) -> None:
        self.model = self.transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval().to(self.device)
        if self.options["stop"] and self.tokenizer is None:
            self.tokenizer = self.transformers.AutoTokenizer.from_pretrained(folder)

    def generate(self, prompts, *, max_new_tokens, temperature, seed, stop, stop_ids, pad_id) -> list[dict]:
        self.torch.manual_seed(seed)
        found = []
        for start in range(0, len(prompts), self.options["slots"]):
            rows = prompts[start : start + self.options["slots"]]
            width = max(map(len, rows))
            ids = self.torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=self.device)
            seen = self.torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device)
            config = self.transformers.GenerationConfig(
                max_new_tokens=max_new_tokens,
                eos_token_id=stop_ids,
                pad_token_id=pad_id,
                return_dict_in_generate=True,
                output_logits=True,
            )
            if temperature:
                config.update(do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
            out = self.model.generate(
                ids,
                attention_mask=seen,
                generation_config=config,
                stopping_criteria=[lambda rows, _, width=width: self._stopped(rows[:, width:], stop)],
            )
            new = out.sequences[:, width:]
            logits = self.torch.stack(out.logits, 1).float() / (temperature or 1.0)
            logprobs = logits.log_softmax(-1).gather(-1, new[..., None]).squeeze(-1)
            found += map(self._completion, new.tolist(), logprobs.tolist(), [stop] * len(rows), [stop_ids] * len(rows))
        return found

    def _stopped(self, rows, stop):
        ended = [any(string in self.tokenizer.decode(row) for string in stop) for row in rows] if stop else [False] * len(rows)
        return self.torch.tensor(ended, device=self.device)

    def _completion(self, ids, logprobs, stop, stop_ids) -> dict:
        """Up to what ended it; behind that lies padding."""
        for end in range(1, len(ids) + 1):
            if ids[end - 1] in stop_ids or (stop and any(string in self.tokenizer.decode(ids[:end]) for string in stop)):
                return {"ids": ids[:end], "logprobs": logprobs[:end], "finished": True}
        return {"ids": ids, "logprobs": logprobs, "finished": False}

    def sums(self) -> dict[str, float]:
        # By way of a folder: in memory transformers fuses experts, in a folder they have the names that everybody knows.
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            found = {}
            for path in Path(folder).glob("*.safetensors"):
                with safe_open(path, "pt") as file:
                    found |= {name: float(file.get_tensor(name).double().sum()) for name in file.keys()}
        return found


ENGINES = {"vllm": VLLM, "transformers": Transformers}


def main() -> None:
    # Everything is in the folder; local_files_only alone does not keep transformers from asking for adapters.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Libraries print to stdout as they like: the answers get it for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    name, options = sys.argv[1], json.loads(sys.argv[2])
    engine, loaded = None, None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if engine is None:
                engine = ENGINES[name](options)
            call, given = request["call"], request["given"]
            if call == "load":
                loaded = given.pop("version")
            result = getattr(engine, call)(**given)
            answer = {"result": result, "version": loaded}
        except ModuleNotFoundError as error:
            answer = {"error": f"{error.name} is not installed in {sys.executable}"}
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is the asker's to report
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
