"""Data, tokenizers and templates from a stranger: refused in one line, within a processor time and memory."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Value, load_from_disk
from folders import edit_json, save_hf
from strangers import require_refused, tool

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.own_template import Renderer
from megatron_bar.data.sources import Source, raw_rows
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError

MB = 1 << 20
CHAT = [{"role": "user", "content": "one plus"}, {"role": "assistant", "content": "two"}]


def endless(open_: Callable) -> None:
    with open_ as file:
        file.write(b'{"text": "')
        for _ in range(300):
            file.write(b"a" * (4 * MB))


def repeated(path: Path) -> None:
    """1,000 rows of the same 32 MB, which the file has once."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), pa.array(["a" * (32 * MB)]))
    pa.parquet.write_table(pa.table({"text": column}), path, compression="zstd")


def inflated(path: Path) -> None:
    text = pa.array(["a" * (400 * MB)], pa.large_string())
    pa.parquet.write_table(pa.table({"text": text}), path, compression="zstd", use_dictionary=False)


def nested(path: Path) -> None:
    """A list of 20,000 times the same text of 1 MB, which the file has once."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), pa.array(["a" * MB]))
    table = pa.table({"text": ["a"], "more": pa.ListArray.from_arrays([0, 20_000], texts)})
    pa.parquet.write_table(table, path, compression="zstd", store_schema=False)


def zones(path: Path) -> None:
    """A time in a zone that no clock has."""
    table = pa.table({"text": ["a"], "at": pa.array([0], pa.timestamp("s", "../../etc/passwd"))})
    pa.parquet.write_table(table, path)


FILES: dict[str, Callable[[Path], None]] = {
    "bomb.jsonl.gz": lambda path: endless(gzip.open(path, "wb", 1)),
    "bomb.jsonl.zst": lambda path: endless(pa.CompressedOutputStream(str(path), "zstd")),
    "blank.jsonl.gz": lambda path: path.write_bytes(gzip.compress(bytes([10]) * (64 * MB), 1)),
    "repeated.parquet": repeated,
    "nested.parquet": nested,
    "zones.parquet": zones,
    "pipe.jsonl": os.mkfifo,
    "pipe.jsonl.gz": os.mkfifo,
    "pipe.parquet": os.mkfifo,
    "inflated.parquet": inflated,
}
TOKENS = ("preprocess_data", "--kind", "text", "--tokenizer", "folder", "--out", "out", "--processes", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_hf(tmp_path_factory.mktemp("rows") / "folder", seed=1)


@pytest.mark.faults
@pytest.mark.parametrize("name", FILES)
def test_rows_that_grow_are_refused(name, folder, tmp_path, record_property):
    (tmp_path / "folder").symlink_to(folder)
    (tmp_path / "good.jsonl").write_text('{"text": "one"}\n')
    FILES[name](tmp_path / name)
    *_, seconds, memory = tool(tmp_path, *TOKENS[:-4], "--out", "good", *TOKENS[-2:], "--input", "good.jsonl")
    done = tool(tmp_path, *TOKENS, "--input", name)
    record_property("figure", f"rows of {name}: {require_refused(done, (seconds, memory))}")
    assert not (tmp_path / "out").exists()


def test_a_picture_is_not_fetched(tmp_path):
    """Its row names a file that is not there: whoever decodes it fails."""
    rows = {"text": ["one"], "image": [{"bytes": None, "path": str(tmp_path / "none.png")}]}
    kept = {"bytes": Value("binary"), "path": Value("string")}
    Dataset.from_dict(rows, Features({"text": Value("string"), "image": kept})).save_to_disk(
        tmp_path / "saved"
    )
    text = {"dtype": "string", "_type": "Value"}
    edit_json(tmp_path / "saved/dataset_info.json", features={"text": text, "image": {"_type": "Image"}})
    with pytest.raises(FileNotFoundError):
        load_from_disk(str(tmp_path / "saved"))[0]
    ((_, row),) = raw_rows(Source(path=tmp_path / "saved", kind="text"), Path())
    assert row["text"] == "one" and row["image"]["bytes"] is None


def outside(saved: Path) -> None:
    (saved / "data-00000-of-00001.arrow").rename(saved.parent / "outside.arrow")
    edit_json(saved / "state.json", _data_files=[{"filename": "../outside.arrow"}])


def linked(saved: Path) -> None:
    arrow = saved / "data-00000-of-00001.arrow"
    arrow.rename(saved.parent / "outside.arrow")
    arrow.symlink_to(saved.parent / "outside.arrow")


def split_outside(saved: Path) -> None:
    (saved / "dataset_dict.json").write_text('{"splits": ["../saved"]}')


def compressed(saved: Path) -> None:
    """1,500 MB in a batch of kilobytes."""
    table = pa.table({"text": pa.array(["a" * (1500 * MB)])})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(saved / "data-00000-of-00001.arrow"), "wb") as file:
        with pa.ipc.new_stream(file, table.schema, options=options) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("spoil", [outside, linked, split_outside, compressed])
def test_a_saved_data_set_stays_in_its_folder_and_in_memory(spoil, tmp_path):
    saved = tmp_path / "saved"
    Dataset.from_dict({"text": ["one"]}).save_to_disk(saved)
    spoil(saved)
    with pytest.raises(BarError, match=r"^\S+(: _data_files)? ?(expected|: expected|: datasets cannot)"):
        list(raw_rows(Source(path=saved, kind="text"), Path()))


def test_a_row_of_every_private_character_is_refused(folder):
    every = "".join(map(chr, range(0xE000, 0xF900)))
    messages = [{"role": "user", "content": every}, CHAT[1]]
    with pytest.raises(BarError, match=r"^a:1: expected text, got every character of Unicode's private use$"):
        ChatFormat(load_tokenizer(folder)).render(messages, where="a:1")


TEMPLATES = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "multiplies": "{{ 'a' * 10000000000 }}",
    "doubles": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "pads": "{{ '%0999999999d' % 1 }}",
    "words": "{{ 'one two ' * 2000000 }}{{ messages[0].content }}{{ eos_token }}",
    "half a character": "{{ '\\ud800' }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_bounded_and_the_next_one_is_rendered(name, folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES[name])
    with pytest.raises(BarError, match=r"^chat template: the chat template fails: "):
        ChatFormat(load_tokenizer(tmp_path), "own")
    good = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(good)
    chats = ChatFormat(load_tokenizer(tmp_path), "own")
    assert chats.render(CHAT).ids == ChatFormat(load_tokenizer(tmp_path), "own").render(CHAT).ids


def test_a_template_of_a_tokenizer_says_what_transformers_says():
    from transformers.utils.chat_template_utils import render_jinja_template

    template = "{% for m in messages %}{{ m.role }}: {{ m.content | tojson }}{{ eos_token }}{% endfor %}"
    given = {"conversations": [CHAT], "chat_template": template, "eos_token": "</s>", "bos_token": "é\u2028"}
    renderer = Renderer()
    assert renderer.ask(**given) == render_jinja_template(**given)[0][0]
    renderer.end()


def growing(place: Path) -> None:
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    edit_json(place / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [double] * 60})


def panicking(place: Path) -> None:
    """A special token's id that no vector of the library has."""
    spec = json.loads((place / "tokenizer.json").read_text())
    spec["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}
    (place / "tokenizer.json").write_text(json.dumps(spec))


def said(**parts) -> Callable[[Path], None]:
    return lambda place: edit_json(place / "tokenizer.json", **parts)


def model(**fields) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        known = json.loads((place / "tokenizer.json").read_text())["model"]
        edit_json(place / "tokenizer.json", model=known | fields)

    return make


def around(entries: list, ids: int) -> dict:
    special = {"x": {"id": "x", "ids": [1] * ids, "tokens": ["x"] * ids}}
    pair = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {"type": "TemplateProcessing", "single": entries, "pair": pair, "special_tokens": special}


TEXT = {"Sequence": {"id": "A", "type_id": 0}}
SPECIAL = {"SpecialToken": {"id": "x", "type_id": 0}}
LONG = {"id": 50, "content": "a" * (30 * MB), "special": True}
LONG |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "a text 100,000 times": said(post_processor=around([TEXT] * 100_000, 1)),
    "10,000 ids 100,000 times": said(post_processor=around([SPECIAL] * 100_000 + [TEXT], 10_000)),
    "bytes of bytes": said(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTES] * 40}),
    "100,000 normalizers": said(normalizer={"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 100_000}),
    "an added token of 30 MB": said(added_tokens=[LONG]),
    "a piece of 1 MB": model(
        type="Unigram", unk_id=0, byte_fallback=False, vocab=[["<|pad|>", 0.0], ["a" * MB, -1.0]]
    ),
    "no unknown piece": model(unk_token="none"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_of_sizes_that_none_has_is_refused(name, folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    TOKENIZERS[name](tmp_path)
    with pytest.raises(
        BarError, match=r"tokenizer\.json: (?:expected at most|expected a text|the tokenizer)"
    ):
        load_tokenizer(tmp_path).encode_text("unheard")


@pytest.mark.parametrize("spoil", [growing, panicking])
def test_a_tokenizer_that_grows_or_panics_is_refused(spoil, folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    spoil(tmp_path)
    with pytest.raises(
        BarError, match=r"tokenizer\.json: (?:expected a text to grow|not a read|the tokenizer)"
    ):
        load_tokenizer(tmp_path).encode_text("aaaa")
