"""bar merge --base --dense: fine-tunes of one dense model as a mixture, against transformers, for every family; and
what it refuses."""

import shutil

import pytest
import torch
from distributed import run_distributed
from folders import CLASSES, add_tokenizer, copy_with, edit_json, load_tensors, save_hf
from scripts import refused

from megatron_bar.data.packing import Batch
from megatron_bar.experts.dense_merge import dense_merge
from megatron_bar.experts.shared import Combination
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import ParamGroup, classify
from megatron_bar.weights.hashes import folder_hash, hash_units
from megatron_bar.weights.manifest import TrainingRecord, read_manifest

TIED = "the embedding was tied to the head: untied, the head starts as its copy"


def permuted(seed: int):
    """A change of the values that computes the same: the neurons of every FFN in another order."""

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if ".mlp." not in name:
            return tensor
        layer = int(name.split(".")[2])
        width = tensor.shape["down_proj" in name]
        order = torch.randperm(width, generator=torch.Generator().manual_seed(seed + layer))
        return tensor[:, order] if "down_proj" in name else tensor[order]

    return change


def moved(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda name, tensor: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, dense):
    place = tmp_path_factory.mktemp("mix")
    return {name: copy_with(dense, place / name, moved(n)) for n, name in enumerate(("math", "code"))}


def mixed(inline, base, tuned, out, *more):
    given = [part for name, path in tuned.items() for part in ("--dense", f"{name}={path}")]
    return inline("merge_experts", "--base", base, *given, "--out", out, *more)


@torch.no_grad()
def logits(path, architecture: str) -> torch.Tensor:
    import transformers

    model, told = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert type(model).__name__ == f"{architecture}ForCausalLM"
    return model(torch.arange(18).view(2, 9)).logits


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", CLASSES)
def test_fine_tunes_that_compute_the_same_mixed_do_too(family, tied, inline, tmp_path):
    base = save_hf(tmp_path / "base", family=family, tie_word_embeddings=tied)
    tuned = {name: copy_with(base, tmp_path / name, permuted(n)) for n, name in enumerate(("math", "code"))}
    out = tmp_path / "out"
    status, said, _ = mixed(inline, base, tuned, out)
    assert status == 0 and (f"note: {TIED}" in said.splitlines()) is tied
    of_dense, of_mixture = CLASSES[family]
    expected = logits(base, of_dense)
    difference = (logits(out, of_mixture) - expected).abs().max() / max(1, expected.abs().max())
    print(f"\n{family}: {difference:.1e}")
    assert difference < 1e-5
    folder = Folder.open(out)
    assert (folder.config.num_experts, folder.config.experts_per_token) == (3, 3)
    for slot, path in enumerate((base, *tuned.values())):
        for name, tensor in load_tensors(path).items():
            if ".mlp." in name:
                assert torch.equal(folder.read(name.replace(".mlp.", f".mlp.experts.{slot}.")), tensor)


@pytest.mark.parametrize(
    "more", [(), ("--shared", "task-arithmetic", "--scale", "0.5")], ids=["mean", "others"]
)
def test_shared_tensors_are_those_of_a_dense_merge(more, inline, dense, tuned, tmp_path):
    assert mixed(inline, dense, tuned, tmp_path / "out", *more)[0] == 0
    shared = Combination(method="task-arithmetic", scale=0.5) if more else Combination()
    made = load_tensors(tmp_path / "out")
    for name, tensor in load_tensors(
        dense_merge({"anchor": dense} | tuned, tmp_path / "dense", shared=shared).path
    ).items():
        assert ".mlp." in name or torch.equal(made[name], tensor)


def test_its_manifest_names_what_it_was_made_of(inline, dense, tuned, tmp_path):
    mixed(inline, dense, tuned, tmp_path / "out", "--seed", "4")
    manifest = read_manifest(tmp_path / "out")
    hashes = [folder_hash(hash_units(Folder.open(path))) for path in (dense, *tuned.values())]
    assert [(e.index, e.name, e.folder, e.folder_hash) for e in manifest.experts] == [
        (0, "anchor", "dense", hashes[0]),
        (1, "math", "math", hashes[1]),
        (2, "code", "code", hashes[2]),
    ]
    assert [(source.role, source.hash) for source in manifest.sources] == [
        ("anchor", hashes[0]),
        ("math", hashes[1]),
        ("code", hashes[2]),
    ]
    note = "BTX of independent dense models; shared tensors: mean of all; router rows: normal, seed 4"
    assert manifest.notes == (note,)


def route(folder, out) -> None:
    stage = Stage(name="route", policy="route", optim=OptimConfig(lr=1e-2), sequence=16, batch=2)
    trainer = Trainer(folder, stage, steps=1)
    ids = torch.randint(2, 19, (1, 16), generator=torch.Generator().manual_seed(0))
    labels = ids.roll(-1, 1)
    batch = Batch(ids=ids, labels=labels, positions=torch.arange(16)[None], documents=None)
    trainer.step([batch, batch], LanguageModelling())
    manifest = read_manifest(folder).after(TrainingRecord(stage="route", policy="route"), sources=())
    trainer.save(out, manifest=lambda *_: manifest)


def test_its_router_is_trained_next(inline, dense, tuned, tmp_path):
    mixed(inline, dense, tuned, tmp_path / "mixture")
    run_distributed(route, 1, tmp_path / "mixture", tmp_path / "out")
    before, after = load_tensors(tmp_path / "mixture"), load_tensors(tmp_path / "out")
    moved = {classify(name) for name in before if not torch.equal(before[name], after[name])}
    assert moved == {ParamGroup.ROUTER} and read_manifest(tmp_path / "out").kind == "routed"


def other_tokenizer(path) -> None:
    add_tokenizer(path, ("<|pad|>", "<|endoftext|>", "three"))


def test_what_it_refuses_is_one_line(inline, dense, branched, expert, tuned, tmp_path, capsys):
    place = tmp_path / "in"
    place.mkdir()
    copied = shutil.copytree(dense, place / "copied")
    words = shutil.copytree(tuned["math"], place / "words")
    other_tokenizer(words)
    ends = shutil.copytree(tuned["math"], place / "ends")
    edit_json(ends / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 6000.0})
    wide = save_hf(place / "wide", intermediate_size=32)
    llama = save_hf(place / "llama", family="llama")
    math = f"math={tuned['math']}"
    capsys.readouterr()  # transformers' bars
    base, one = ("--base", dense), ("--dense", math)
    for given, message in (
        ((*base, *one, "--anchor", branched), "or as --base with --dense, got --anchor, --base, --dense"),
        ((*base, *one, "--expert", f"x={expert}"), "got --expert, --base, --dense"),
        (("--anchor", branched, *one), "got --anchor, --dense"),
        (("--base", dense), "got --base"),
        ((), "got neither"),
        ((*base, *one, "--report", tmp_path / "r.md"), "--report expected with --anchor"),
        ((*base, "--dense", f"anchor={tuned['math']}"), "expected another name than 'anchor'"),
        ((*base, *one, *one), "'math' expected once"),
        ((*base, "--dense", f"math={dense}"), "expected one folder per model"),
        (
            (*base, *one, "--dense", f"x={copied}"),
            f"{copied}: expected a model that was fine-tuned from {dense}, ",
        ),
        ((*base, "--dense", f"x={words}"), "words/tokenizer.json: expected the same tokenizer as"),
        ((*base, "--dense", f"x={ends}"), "ends: rope_theta expected 5000.0"),
        ((*base, "--dense", f"x={wide}"), "wide: intermediate_size expected 24 as in"),
        ((*base, "--dense", f"x={llama}"), "llama: family expected olmo2 as in"),
        ((*base, "--dense", f"x={branched}"), "expected a dense folder, got one of 2 experts"),
        (("--base", branched, *one), "expected a dense folder, got one of 2 experts"),
        ((*base, *one, "--shared", "first"), "'first' expected in a merge of branched experts only"),
        ((*base, *one, "--weight", "math=1"), "weight expected for each of anchor, math, missing anchor"),
    ):
        assert message in refused(inline("merge_experts", *given, "--out", tmp_path / "out")), message
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
