"""``model.generate`` of transformers as an engine, a batch of rows at a time: slow, and runs wherever torch
does."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import delivery
import torch
import transformers
from safetensors.torch import save_file


class Transformers:
    """Answers with the weights of a folder, and with what arrives in their place."""

    def __init__(self, options: dict):
        self.options = options
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        transformers.utils.logging.disable_progress_bar()
        self.folder = self.model = self.tokenizer = None
        self.arrived: dict[str, torch.Tensor] = {}

    def open(self, folder: str) -> dict:
        """Loads ``folder``; returns what the engine takes the model for."""
        self.folder = folder
        self._load(folder)
        if self.options["stop"]:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        config = self.model.config
        return {
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "vocab_size": config.vocab_size,
            "num_experts_per_tok": getattr(config, "num_experts_per_tok", None),
            "rope_theta": config.rope_parameters["rope_theta"],
            "rope_factor": config.rope_parameters.get("factor"),
            "max_length": config.max_position_embeddings,
        }

    def _load(self, folder: str) -> None:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self.model = model.eval().to(self.device)

    def update(self, path: str, sums: dict[str, int]) -> list[str]:
        """Takes the tensors that arrived; returns those that it then holds otherwise."""
        self.arrived = delivery.read(path, sums)
        # By way of a folder: in memory transformers fuses experts, in a folder they have the names that all
        # know.
        with tempfile.TemporaryDirectory() as place:
            for file in Path(self.folder).iterdir():
                if "safetensors" not in file.name:
                    (Path(place) / file.name).symlink_to(file.resolve())
            save_file(dict(delivery.with_others(self.arrived, self.folder)), f"{place}/model.safetensors")
            self._load(place)
        return self.wrong()

    def wrong(self) -> list[str]:
        """Returns the tensors that it holds otherwise than they last arrived."""
        with self._held() as place:
            held = dict(delivery.with_others({}, place, self.arrived.__contains__))
        return [name for name, tensor in self.arrived.items() if not torch.equal(held[name], tensor)]

    @contextmanager
    def _held(self) -> Iterator[str]:
        with tempfile.TemporaryDirectory() as place:
            self.model.save_pretrained(place)
            yield place

    def generate(
        self, prompts, more: Callable[..., list], *, max_new_tokens, temperature, seed, stop, stop_ids, pad_id
    ) -> list[tuple[int, dict]]:
        """Returns the number of each prompt with its answer, as the fields of a `Completion`.

        ``prompts``: numbers and tokens. ``more`` is told how many answers have ended, and returns further
        prompts (see `Server.more`).
        """
        done = []
        while prompts:
            numbers, rows = zip(*prompts[: self.options["slots"]], strict=True)
            torch.manual_seed((seed << 24) + numbers[0])
            width = max(map(len, rows))
            ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=self.device)
            seen = torch.tensor(
                [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device
            )
            config = transformers.GenerationConfig(
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
            logits = torch.stack(out.logits, 1).float() / (temperature or 1.0)
            logprobs = logits.log_softmax(-1).gather(-1, new[..., None]).squeeze(-1)
            for number, row_ids, row_logprobs in zip(numbers, new.tolist(), logprobs.tolist(), strict=True):
                done.append((number, self._completion(row_ids, row_logprobs, stop, stop_ids)))
            prompts = prompts[len(rows) :]
            prompts = prompts + more(len(rows), wait=not prompts)
        return done

    def _stopped(self, rows, stop):
        ended = [self._has_text(row, stop) for row in rows]
        return torch.tensor(ended, device=self.device)

    def _has_text(self, ids, stop) -> bool:
        return any(string in self.tokenizer.decode(ids) for string in stop)

    def _completion(self, ids, logprobs, stop, stop_ids) -> dict:
        """Up to what ended it; behind that lies padding."""
        for end in range(1, len(ids) + 1):
            if ids[end - 1] in stop_ids or self._has_text(ids[:end], stop):
                return {"ids": ids[:end], "logprobs": logprobs[:end], "finished": True}
        return {"ids": ids, "logprobs": logprobs, "finished": False}
