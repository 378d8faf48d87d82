"""Logits of folders by whichever transformers runs this, in fp32, and what it said about the tensors' names.

    python logits.py RESULT FOLDER...

writes RESULT/N.safetensors and RESULT/said.json.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


@torch.no_grad()
def logits(folder: str | Path) -> tuple[torch.Tensor, dict[str, list[str]]]:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    ids = torch.randint(model.config.vocab_size, (3, 24), generator=torch.Generator().manual_seed(0))
    return model.eval()(ids).logits, {key: sorted(map(str, info[key] or ())) for key in KEYS}


def main(result: str, *folders: str) -> None:
    said = {"version": transformers.__version__, "folders": []}
    for n, folder in enumerate(folders):
        values, names = logits(folder)
        save_file({"logits": values.contiguous()}, Path(result) / f"{n}.safetensors")
        said["folders"].append(names)
    (Path(result) / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
