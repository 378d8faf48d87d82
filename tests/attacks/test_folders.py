"""Folders from a stranger: every tool that opens one refuses it in one line, within 10 s of processor time
and 1 GiB beyond what the tool takes of a good one, and nothing of the host comes into what is written."""

import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from folders import edit_json, save_hf
from strangers import require_refused, tool
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from megatron_bar.conversion.convert import import_folder
from megatron_bar.weights.card import known_of
from megatron_bar.weights.folder import Folder

INSPECT = ("inspect_model", "{}")
CARD = ("card", "{}")
EXPORT = ("export_hf", "--checkpoint", "{}", "--out", "out")
IMPORT = ("import_hf", "--hf", "{}", "--out", "out")


def header(shape: str) -> Callable[[Path], None]:
    """A safetensors file of one tensor, whose shape is this text."""

    def make(place: Path) -> None:
        text = f'{{"model.norm.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}'.encode()
        (place / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)

    return make


def long_header(place: Path) -> None:
    text = b"{" + b'"a":{},' * (4 << 20) + b'"b":{}}'
    (place / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


def pipe(name: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        os.mkfifo(place / name)

    return make


def link(name: str, target: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(target)

    return make


def elsewhere(name: str) -> Callable[[Path], None]:
    """The same file, but outside of the folder and linked."""

    def make(place: Path) -> None:
        outside = place.parent.with_name(f"{place.parent.name}-{name}")
        (place / name).rename(outside)
        (place / name).symlink_to(outside)

    return make


def hole(name: str, size: int) -> Callable[[Path], None]:
    """A file of nothing, which takes no room before it is copied."""

    def make(place: Path) -> None:
        (place / name).touch()
        os.truncate(place / name, size)

    return make


def written(place: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    (place / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def said(*path, value) -> Callable[[Path], None]:
    """Another value in the manifest."""

    def make(place: Path) -> None:
        manifest = json.loads((place / "manifest.json").read_text())
        part = manifest
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        (place / "manifest.json").write_text(json.dumps(manifest))

    return make


def text_of(name: str, text: str) -> Callable[[Path], None]:
    return lambda place: (place / name).write_text(text)


def raw(data: bytes) -> Callable[[Path], None]:
    return lambda place: (place / ".metadata").write_bytes(data)


def described(change: Callable) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        value = pickle.loads((place / ".metadata").read_bytes())  # noqa: S301  of our own making
        change(value)
        (place / ".metadata").write_bytes(pickle.dumps(value))

    return make


def doubled(levels: int) -> bytes:
    """A tuple of two that are the same tuple of two, and so on: 2^levels leaves."""
    made = b"K\x01\x85"
    for n in range(levels):
        made += bytes([0x71, n, 0x68, n, 0x86])
    return made


def nested(value) -> None:
    deep = (1,)
    for _ in range(34):
        deep = (deep, deep)
    place = next(iter(value.storage_data.values()))
    object.__setattr__(place, "transform_descriptors", deep)


def parts(count: int, sizes: Callable[[int], tuple[list[int], list[int]]]) -> Callable:
    """So many parts of a matrix, which the function places."""

    def change(value) -> None:
        known = next(v for k, v in value.state_dict_metadata.items() if "output_layer" in k)
        known.chunks = [ChunkStorageMetadata(*map(torch.Size, sizes(n))) for n in range(count)]
        known.size = torch.Size([count, count])

    return change


def colliding(value) -> None:
    """Places of parts whose offsets, eight numbers each, all have one hash as tuples."""
    place = next(iter(value.storage_data.values()))
    for number in range(4**8):
        offsets = [(number >> 2 * axis) % 4 * (2**61 - 1) for axis in range(8)]
        index = MetadataIndex(str(number), torch.Size(offsets))
        value.storage_data[index] = place
        object.__setattr__(index, "fqn", "x")  # only now, or this would take as long as the attack
    value.state_dict_metadata = None


def attributes(module: str, name: str, **values: bytes) -> bytes:
    """The opcodes that set attributes of a class for the whole process."""
    made = f"c{module}\n{name}\nN}}".encode()
    for key, value in values.items():
        made += b"X" + struct.pack("<I", len(key)) + key.encode() + value + b"s"
    return made + b"\x86b0"


def items(write: Callable[[zipfile.ZipFile], None]) -> Callable[[Path], None]:
    """Other archives in the place of the tensors' items."""

    def make(place: Path) -> None:
        bomb = place / "bomb"
        with zipfile.ZipFile(bomb, "w") as archive:
            write(archive)
        data = bomb.read_bytes()
        bomb.unlink()
        (place / "__0_0.distcp").write_bytes(data)

        def point(value) -> None:
            for found in value.storage_data.values():
                found.offset, found.length = 0, len(data)

        described(point)(place)

    return make


def inflating(archive: zipfile.ZipFile) -> None:
    with archive.open(zipfile.ZipInfo("archive/data.pkl"), "w", force_zip64=True) as file:
        for _ in range(1 << 12):
            file.write(b"a" * 4096)
    info = zipfile.ZipInfo("archive/data/0")
    info.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(info, bytes(64 << 20))


def crowded(archive: zipfile.ZipFile) -> None:
    for n in range(200_000):
        archive.writestr(f"archive/{n}", b"")


MANY = 30_000
_METADATA = "torch.distributed.checkpoint.metadata"
FOLDERS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a size of 12,000 factors": (header("[" + ",".join(["9" * 400] * 12_000) + "]"), INSPECT),
    "a size of 4,000 digits": (header("[1" + "0" * 4000 + ",1" + "0" * 4000 + "]"), INSPECT),
    "a size of 4,000 digits times nothing": (header("[" + "9" * 4000 + ",0]"), INSPECT),
    "a header of 30 MB": (long_header, INSPECT),
    "a pipe as config": (pipe("config.json"), INSPECT),
    "a pipe as weights": (pipe("model.safetensors"), INSPECT),
    "a device as config": (link("config.json", "/dev/zero"), INSPECT),
    "an index of brackets": (text_of("model.safetensors.index.json", "[" * (30 << 20)), INSPECT),
    "a million experts": (lambda p: edit_json(p / "config.json", num_experts=10**6), INSPECT),
    "a million layers": (lambda p: edit_json(p / "config.json", num_hidden_layers=10**6), IMPORT),
    "a linked vocabulary": (link("merges.txt", "/etc/passwd"), IMPORT),
    "a linked template": (link("chat_template.jinja", "../../../../../../etc/passwd"), IMPORT),
    "a size of no axis": (header("[]"), INSPECT),
    "a tensor of a million characters": (
        lambda p: written(p, {"a" * 10**6: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        INSPECT,
    ),
    "a million kinds of layers": (
        lambda p: edit_json(p / "config.json", layer_types=[1] * 10**6),
        INSPECT,
    ),
    "an index of 5,000,000 objects": (
        text_of("model.safetensors.index.json", '{"weight_map":[' + '{"":0},' * 5_000_000 + "{}]}"),
        INSPECT,
    ),
    "a config of 9,000,000 lists": (text_of("config.json", '{"a":[' + "[0]," * 9_000_000 + "[]]}"), INSPECT),
    "a linked README": (link("README.md", "/etc/passwd"), IMPORT),
    "a linked config": (link("config.json", "/etc/passwd"), IMPORT),
    "linked weights": (elsewhere("model.safetensors"), IMPORT),
    "a vocabulary of 3 GB": (hole("vocab.json", 3 << 30), IMPORT),
    "1,024 layers of 1,024 experts": (
        lambda p: edit_json(
            p / "config.json",
            num_hidden_layers=1024,
            num_experts=1024,
            num_experts_per_tok=2,
            layer_types=None,
        ),
        INSPECT,
    ),
    "an adapter": (text_of("adapter_config.json", "{}"), IMPORT),
}
CHECKPOINTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a key that takes 2^60 steps to hash": (raw(b"\x80\x02}" + doubled(60) + b"K\x01s."), EXPORT),
    "a value of 2^34 parts": (described(nested), EXPORT),
    "30,000 parts in a row": (described(parts(MANY, lambda n: ([n, 0], [1, MANY]))), EXPORT),
    "1,000 parts that no cut parts": (described(parts(1000, lambda n: ([n, 0], [1000 - n, 1]))), EXPORT),
    "30,000 parts, one cut each": (
        described(parts(MANY, lambda n: ([n, 0], [MANY - n, 1]) if n % 2 else ([0, n], [1, MANY - n]))),
        EXPORT,
    ),
    "classes changed for the process": (
        raw(b"\x80\x02" + attributes(_METADATA, "Metadata", hijacked=b"K\x2a") + b"N."),
        EXPORT,
    ),
    "a call": (raw(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."), EXPORT),
    "a long number": (raw(b"\x80\x02\x8b\x00\x00\x80\x01" + b"\xff" * (24 << 20) + b"."), EXPORT),
    "a million experts in the manifest": (
        lambda p: edit_json(
            p / "manifest.json",
            config=json.loads((p / "manifest.json").read_text())["config"] | {"num_experts": 10**6},
        ),
        EXPORT,
    ),
    "a linked description": (elsewhere(".metadata"), EXPORT),
    "linked values": (elsewhere("__0_0.distcp"), EXPORT),
    "60,000,000 opcodes": (raw(b"\x80\x02" + b"N" * 60_000_000 + b"."), EXPORT),
    "12,000,000 lists": (raw(b"\x80\x02" + b"]" * 12_000_000 + b"."), EXPORT),
    "5,000,000 pairs": (
        raw(b"\x80\x02}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(5_000_000)) + b"u."),
        EXPORT,
    ),
    "4,000,000 names": (raw(b"\x80\x02" + b"ctorch\nfloat32\n" * 4_000_000 + b"."), EXPORT),
    "keys of one hash": (
        raw(
            b"\x80\x02}("
            + b"".join(b"\x8a\x0c" + (n * (2**61 - 1)).to_bytes(12, "little") + b"N" for n in range(300_000))
            + b"u."
        ),
        EXPORT,
    ),
    "offsets of one hash": (described(colliding), EXPORT),
    "60,000,000 dictionaries": (raw(b"\x80\x02" + b"}" * 60_000_000 + b"."), EXPORT),
    "a million groups above a million values": (
        raw(b"\x80\x02" + b"N" * 10**6 + b"(t" * 10**6 + b"."),
        EXPORT,
    ),
    "1,024 layers of 1,024 experts in the manifest": (
        lambda p: edit_json(
            p / "manifest.json",
            config=json.loads((p / "manifest.json").read_text())["config"]
            | {"num_hidden_layers": 1024, "num_experts": 1024, "layer_types": None},
        ),
        INSPECT,
    ),
    "lines in a stage's name": (said("stage", value="x\nrouter: trained"), INSPECT),
    "a colour in a recipe's name": (said("recipe", value="\x1b[31m"), INSPECT),
    "a version that is HTML, and lines": (said("tool_version", value="<img>\n# Safe"), CARD),
    "20,000 experts in the manifest": (
        said("experts", value=[{"index": n, "name": f"e{n}"} for n in range(20_000)]),
        ("cost", "{}"),
    ),
    "an artifact of no experts": (
        lambda p: (said("kind", value="artifact")(p), said("experts", value=[])(p)),
        CARD,
    ),
    "a pipe as manifest": (pipe("manifest.json"), EXPORT),
    "items that inflate": (items(inflating), EXPORT),
    "items of 200,000 members": (items(crowded), EXPORT),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("good")
    save_hf(place / "folder", experts=2, seed=1)
    import_folder(place / "folder", place / "checkpoint")
    return place


@pytest.fixture(scope="module")
def usual(good, tmp_path_factory) -> tuple[float, int]:
    """Seconds and bytes that a tool takes of a good folder."""
    status, out, err, seconds, memory = tool(good, "inspect_model", "folder")
    assert status == 0, out + err
    return seconds, memory


def cases():
    for folder, found in (("folder", FOLDERS), ("checkpoint", CHECKPOINTS)):
        for number, (name, (make, command)) in enumerate(found.items()):
            marks = [pytest.mark.faults] if number % 8 else []
            yield pytest.param(name, folder, make, command, id=name, marks=marks)


@pytest.mark.parametrize("name, folder, make, command", list(cases()))
def test_a_strangers_folder_is_refused(name, folder, make, command, good, usual, tmp_path, record_property):
    subprocess.run(["cp", "-r", good / folder, tmp_path / "hostile"], check=True)
    make(tmp_path / "hostile")
    done = tool(tmp_path, *(word.format("hostile") for word in command))
    assert [path.name for path in tmp_path.iterdir()] == ["hostile"]
    record_property("figure", f"folder with {name}: {require_refused(done, usual)}")


def test_names_that_move_the_cursor_are_spelled_out(good, tmp_path):
    place = tmp_path / "folder"
    subprocess.run(["cp", "-r", good / "folder", place], check=True)
    evil = "\x1b[2J\x1b]0;pwned\x07\u202e"
    (place / f"model{evil}.safetensors").write_bytes(b"")
    _, out, err, *_ = tool(tmp_path, "inspect_model", "folder")
    assert "x1b[2J" in err and not set(evil) & set("\x1b\x07\u202e") & set(out + err)


def test_a_model_is_loaded_by_a_config_of_our_own(good, tmp_path):
    place = tmp_path / "folder"
    subprocess.run(["cp", "-r", good / "folder", place], check=True)
    edit_json(
        place / "config.json", attn_implementation="kernels-community/x", auto_map={"AutoConfig": "e.E"}
    )
    (place / "evil.py").write_text("raise SystemExit")
    Folder.open(place).link_to(tmp_path / "clean")
    linked = {path.name for path in (tmp_path / "clean").iterdir()}
    assert "evil.py" not in linked and "model.safetensors" in linked
    config = json.loads((tmp_path / "clean/config.json").read_text())
    assert not config.keys() & {"attn_implementation", "auto_map"}


@pytest.mark.parametrize(
    "front",
    [
        "a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40)),
        "a: " + "1:" * 400_000 + "1",
        "\n".join(f"k{n}: [a, b, c]" for n in range(45_000)),
        "a: !!bool x",
        "? [a]\n: b",
        "a: &a [*a]",
    ],
    ids=["merged", "base 60", "long", "no truth", "a list as key", "itself"],
)
def test_a_front_matter_that_takes_the_readers_time_says_nothing(front, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    assert known_of(tmp_path) == {}
