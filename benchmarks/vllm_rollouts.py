"""vLLM's side of bench_rollout.py, in vLLM's own environment: for every line of JSON that comes in (prompts
and lengths), a line with the seconds that it took and the answers.

    python benchmarks/vllm_rollouts.py FOLDER SLOTS LONGEST
"""

import json
import os
import sys
import time


def main() -> None:
    folder, slots, longest = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    # Lines go by a copy of standard output, and whatever is printed to standard error.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=slots,
        max_model_len=longest,
        enable_prefix_caching=False,  # the same prompts come round after round
        skip_tokenizer_init=True,
    )
    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        prompts, lengths = json.loads(line)
        params = [
            SamplingParams(temperature=0.0, max_tokens=n, min_tokens=n, ignore_eos=True, detokenize=False)
            for n in lengths
        ]
        began = time.perf_counter()
        done = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        seconds = time.perf_counter() - began
        answers = [list(answer.outputs[0].token_ids) for answer in done]
        print(json.dumps([seconds, answers]), file=out, flush=True)


if __name__ == "__main__":
    main()
