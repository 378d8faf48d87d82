"""Whether a text begins with BOS: as transformers' own ids do, in token files and in the preview; in a chat it is
the template's."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from megatron_bar.data import preview
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.preprocess import Options, prepared, preprocess, read_manifest
from megatron_bar.data.sources import Source
from megatron_bar.data.tokenizer import load_tokenizer

TEXTS = ["one plus two", "", "two <s> one", "plus"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ' ' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)
BEGINS = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
BOTH_ENDS = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
BYTES = processors.ByteLevel(trim_offsets=True)
WAYS = {
    # name: (post-processor, entries of tokenizer_config.json, whether a text begins with BOS)
    "none": (None, {}, False),
    "Llama": (BEGINS, {}, True),
    "Llama 3": (processors.Sequence([BYTES, BEGINS]), {}, True),
    "both ends": (BOTH_ENDS, {}, True),
    "bytes alone": (BYTES, {}, False),
    # Beside a tokenizer.json this entry is not asked.
    "said": (BYTES, {"add_bos_token": True}, False),
    "denied": (BEGINS, {"add_bos_token": False}, True),
}


def save(folder: Path, way: str) -> Path:
    processor, entries, _ = WAYS[way]
    words = ["<unk>", "<s>", "</s>", "<pad>", "one", "two", "plus", "user", "assistant", "<", ">", "s"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(words[:4])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if processor is not None:
        tokenizer.post_processor = processor
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE} | names | entries
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(params=WAYS)
def folder(request, tmp_path):
    return save(tmp_path / "tokenizer", request.param), WAYS[request.param][2]


def test_texts_begin_as_those_of_transformers(folder, tmp_path):
    path, begins = folder
    theirs = AutoTokenizer.from_pretrained(path)
    # One text has a forged special token, which is spelled out here: there only its place is looked at.
    expected = [theirs(text)["input_ids"] for text in TEXTS if "<s>" not in text]
    expected = [ids if ids[-1:] == [2] else [*ids, 2] for ids in expected]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    source = Source(path=Path("x.jsonl"), kind="text")
    preprocess(source, tmp_path, path, tmp_path / "out", Options())
    tokens = prepared(tmp_path / "out")
    made = [tokens.ids[a:b].tolist() for a, b in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)]
    assert all((ids[0] == 1) is begins and ids.count(1) == begins for ids in made)
    assert [ids for ids, text in zip(made, TEXTS, strict=True) if "<s>" not in text] == expected
    assert read_manifest(tmp_path / "out")["begin"] == [1] * begins
    shown = preview._tokens(
        Source(path=tmp_path / "x.jsonl", kind="text"), ChatFormat(load_tokenizer(path), "own"), 10
    )
    assert shown.ids.tolist() == tokens.ids.tolist()


def test_a_chat_begins_once(folder):
    path, _ = folder
    ours, theirs = ChatFormat(load_tokenizer(path), "own"), AutoTokenizer.from_pretrained(path)
    chat = [{"role": "user", "content": "one plus"}, {"role": "assistant", "content": "two"}]
    ids = ours.render(chat).ids
    assert ids == theirs.apply_chat_template(chat)["input_ids"] and ids.count(1) == 1
    prompt = ours.prompt(chat[:1])
    assert prompt == theirs.apply_chat_template(chat[:1], add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize("entries", [{}, {"add_bos_token": True}, {"add_bos_token": False}], ids=str)
def test_sentencepiece_asks_the_config(entries, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text.txt").write_text("the fox said hello to the owl\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"} | entries
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)("the fox")["input_ids"]
    assert (theirs[0] == 1) is bool(entries.get("add_bos_token"))
    assert load_tokenizer(tmp_path).documents(["the fox"]) == [[*theirs, 2]]
