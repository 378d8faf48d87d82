"""An engine in a process and, if need be, a Python environment of its own: vLLM, or transformers where there
is no GPU.

Started by engine.py as ``python engine_server.py NAME OPTIONS``; imports nothing of this project. Reads one
JSON request a line on stdin and answers each by one line on stdout: ``load`` (a Hugging Face folder),
``generate``, ``sums`` (of the weights it holds). Ends when stdin does, so it never outlives who started it.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open


class VLLM:
    """Reads a folder into the running engine (reload_weights); log-probabilities of what is sampled from."""

    def __init__(self, options: dict):
        import vllm

        self.vllm = vllm
        self.options = options
        self.model = None

    def load(self, folder: str) -> None:
        """Makes the weights of ``folder`` those that answer."""
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
        """Returns an answer to each prompt, as the fields of a `Completion`."""
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
        """Returns none: its tensors are fused and sharded as it likes."""
        return {}


class Transformers:
    """``model.generate``, a batch of rows at a time: slow, and runs wherever torch does."""

    def __init__(self, options: dict):
        import torch
        import transformers

        self.torch = torch
        self.transformers = transformers
        self.options = options
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        transformers.utils.logging.disable_progress_bar()
        self.model = self.tokenizer = None

    def load(self, folder: str) -> None:
        """Makes the weights of ``folder`` those that answer."""
        model = self.transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self.model = model.eval().to(self.device)
        if self.options["stop"] and self.tokenizer is None:
            self.tokenizer = self.transformers.AutoTokenizer.from_pretrained(folder)

    def generate(self, prompts, *, max_new_tokens, temperature, seed, stop, stop_ids, pad_id) -> list[dict]:
        """Returns an answer to each prompt, as the fields of a `Completion`."""
        self.torch.manual_seed(seed)
        completions = []
        for start in range(0, len(prompts), self.options["slots"]):
            rows = prompts[start : start + self.options["slots"]]
            width = max(map(len, rows))
            ids = self.torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=self.device)
            seen = self.torch.tensor(
                [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device
            )
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
            for row_ids, row_logprobs in zip(new.tolist(), logprobs.tolist(), strict=True):
                completions.append(self._completion(row_ids, row_logprobs, stop, stop_ids))
        return completions

    def _stopped(self, rows, stop):
        ended = [self._has_text(row, stop) for row in rows]
        return self.torch.tensor(ended, device=self.device)

    def _has_text(self, ids, stop) -> bool:
        return any(string in self.tokenizer.decode(ids) for string in stop)

    def _completion(self, ids, logprobs, stop, stop_ids) -> dict:
        """Up to what ended it; behind that lies padding."""
        for end in range(1, len(ids) + 1):
            if ids[end - 1] in stop_ids or self._has_text(ids[:end], stop):
                return {"ids": ids[:end], "logprobs": logprobs[:end], "finished": True}
        return {"ids": ids, "logprobs": logprobs, "finished": False}

    def sums(self) -> dict[str, float]:
        """Returns the sum of every tensor, by its name in a folder."""
        # By way of a folder: in memory transformers fuses experts, in a folder they have the names that all
        # know.
        sums = {}
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            for path in Path(folder).glob("*.safetensors"):
                with safe_open(path, "pt") as file:
                    sums |= {name: float(file.get_tensor(name).double().sum()) for name in file.keys()}
        return sums


ENGINES = {"vllm": VLLM, "transformers": Transformers}


def answer(engine, request: dict):
    """Returns the result of the call that ``request`` asks for."""
    given = request["given"]
    match request["call"]:
        case "load":
            return engine.load(given["folder"])
        case "generate":
            return engine.generate(**given)
        case "sums":
            return engine.sums()
        case other:
            raise ValueError(f"expected load, generate or sums, got {other}")


def main() -> None:
    """Answers the requests on stdin until there are no more."""
    # Everything is in the folder; local_files_only alone does not keep transformers from asking for adapters.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Libraries print to stdout as they like: the answers get it for themselves.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    name = sys.argv[1]
    options = json.loads(sys.argv[2])
    engine = None
    loaded = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if engine is None:
                engine = ENGINES[name](options)
            if request["call"] == "load":
                loaded = request["given"]["version"]
            reply = {"result": answer(engine, request), "version": loaded}
        except ModuleNotFoundError as error:
            reply = {"error": f"{error.name} is not installed in {sys.executable}"}
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is the asker's to report
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
