"""Log-probabilities of random ids by vLLM, a folder after the other, in the dtype that each one names.

    python vllm_logprobs.py RESULT FOLDER...

writes to RESULT, for every folder, a list of the ids and of what vLLM says of each but the first.
"""

import json
import sys
from pathlib import Path

import torch
import vllm
from vllm.distributed import cleanup_dist_env_and_memory

ROWS, LENGTH = 8, 24


def logprobs(folder: str) -> list[dict]:
    config = json.loads((Path(folder) / "config.json").read_text())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config["vocab_size"], (ROWS, LENGTH), generator=generator).tolist()
    model = vllm.LLM(model=folder, dtype=config["dtype"], enforce_eager=True, skip_tokenizer_init=True)
    asked = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    answers = model.generate([{"prompt_token_ids": row} for row in ids], asked)
    found = []
    for row, answer in zip(ids, answers, strict=True):
        said = [step[token].logprob for token, step in zip(row[1:], answer.prompt_logprobs[1:], strict=True)]
        found.append({"ids": row, "logprobs": said})
    del model
    cleanup_dist_env_and_memory()
    return found


def main(result: str, *folders: str) -> None:
    Path(result).write_text(json.dumps([logprobs(folder) for folder in folders]))


if __name__ == "__main__":
    main(*sys.argv[1:])
