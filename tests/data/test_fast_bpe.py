"""The fast encoder is the library's own, id for id; and it stands back where that is not certain."""

import copy
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron_bar.data.fast_bpe import PATTERN, fast_encoder
from megatron_bar.data.tokenizer import load_tokenizer

DOLMA2 = Path(__file__).parents[3] / "shared/data/dolma2/tokenizer.json"
WORDS = (
    "the then there other and hand land's café größer 漢字 漢 return def 123 12 1 (x) == != ; 😀 a aa aaa "
    "aaaa".split()
)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A vocabulary of a few hundred, split as GPT-4 does; many merges overlap."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    texts = [
        "".join(rng.choice(WORDS) + rng.choice(["", " ", "\n", "  "]) for _ in range(60)) for _ in range(60)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(["|||NAME|||"])
    tokenizer.add_special_tokens(["<|endoftext|>", "<|pad|>"])
    tokenizer.encode_special_tokens = True
    return tokenizer


def spec_of(tokenizer: Tokenizer) -> dict:
    spec = json.loads(tokenizer.to_str())
    for token in spec["added_tokens"]:
        token["normalized"] = False
    return spec


TEXT = st.text() | st.lists(
    st.sampled_from([*WORDS, " ", "\n", "|||NAME|||", "<|endoftext|>", "\r\n", "'S"])
).map("".join)


@settings(max_examples=500, deadline=None)
@given(text=TEXT)
def test_the_same_ids_as_tokenizers(trained, text):
    spec = spec_of(trained)
    theirs = Tokenizer.from_str(json.dumps(spec))
    theirs.encode_special_tokens = True  # as load_tokenizer sets it: no text spells a special token
    assert fast_encoder(spec)(text) == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["model"]["merges"].reverse(),
        lambda spec: spec["model"].update(dropout=0.1),
        lambda spec: spec["model"].update(byte_fallback=True),
        lambda spec: spec["model"]["vocab"].update(zzzz=900),
        lambda spec: spec.update(normalizer={"type": "NFC"}),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\s+"}),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda spec: spec["added_tokens"][0].update(lstrip=True),
    ],
)
def test_where_it_is_not_certain_there_is_none(trained, change):
    spec = copy.deepcopy(spec_of(trained))
    assert fast_encoder(spec) is not None
    change(spec)
    assert fast_encoder(spec) is None


@pytest.fixture(scope="module")
def dolma2():
    if not DOLMA2.is_file():
        pytest.skip("the dolma2 tokenizer is not here")
    return load_tokenizer(DOLMA2)


def both(dolma2, text: str) -> tuple[list[int], list[int]]:
    return dolma2.fast(text), dolma2.tokenizer.encode(text, add_special_tokens=False).ids


@settings(max_examples=300, deadline=None)
@given(
    text=TEXT
    | st.lists(st.sampled_from(["|||IP_ADDRESS|||", "<|im_start|>", "<|extra_id_3|>", "x", " "])).map("".join)
)
def test_the_same_ids_with_the_real_vocabulary(dolma2, text):
    ours, theirs = both(dolma2, text)
    assert ours == theirs


def around(code: int) -> str:
    char = chr(code)
    return f"ab{char}cd {char}1{char}{char}  {char}\n{char}'s"


@pytest.mark.parametrize("step", [37, pytest.param(1, marks=pytest.mark.slow)])
def test_the_same_ids_for_code_points(dolma2, step):
    codes = [code for code in range(0, 0x110000, step) if not 0xD800 <= code < 0xE000]
    expected = dolma2.tokenizer.encode_batch_fast([around(code) for code in codes], add_special_tokens=False)
    assert [
        code for code, wanted in zip(codes, expected, strict=True) if dolma2.fast(around(code)) != wanted.ids
    ] == []


def test_what_it_cannot_split_goes_the_slow_way(dolma2):
    text = " " * 1_000_000
    with pytest.raises(ValueError):
        dolma2.fast(text)
    assert dolma2.encode_text(text) == dolma2.tokenizer.encode(text, add_special_tokens=False).ids
