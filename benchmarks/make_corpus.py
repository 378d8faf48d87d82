# ruff: noqa: RUF001  letters of other scripts are meant
"""Makes corpus.jsonl.gz, the text that bench_data.py tokenises: mixed, and without repetition. Rows are
``{"text"}``.

A quarter is this project's own Python and Markdown, as tracked when this was last run, cut into pieces. The
rest is made up here from seeds: English-like prose, eleven other languages in eight scripts, code in three
languages, JSON, tables and logs, LaTeX, chats with emoji. Words follow Zipf's law, with names, compounds and
made-up endings among them, so that a tokenizer's cache of words does not answer everything. No document and
no line of 80 characters or more occurs twice. The benchmark reads the committed file and never runs this.

    python benchmarks/make_corpus.py
"""

import gzip
import json
import subprocess
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
OUT = HERE / "corpus.jsonl.gz"
SHORTEST, LONGEST, LONG_LINE = 1000, 4000, 80
"""Characters of a document; and of a line that may come once only."""

NOUNS = """time year way day thing world school state group country problem hand part place case week system program question work
number night point home water room area story fact month lot study book job word business issue side kind head house service
friend power hour game line end law car city community president team minute idea body information back level office door health
art history party result change morning reason research moment air force education river mountain garden bridge engine harbour
ladder lantern meadow orchard pebble quarry ribbon shepherd theatre umbrella valley whistle window winter yard anchor basket
candle desert eagle feather glacier hammer island jacket kettle letter mirror needle ocean pocket radio saddle telescope village
wagon apple bottle corner election factory gallery hospital insect journey kitchen library machine network opinion painting
railway signal temple uncle wheel bacteria catalogue dinner equation fabric gravity hypothesis insurance jury landscape molecule
notebook orbit parameter queue reservoir satellite tariff velocity warehouse""".split()
VERBS = """ask call carry change clean climb close collect compare count cover cross deliver describe design discover divide
enter examine explain fill finish follow gather help improve inspect join jump laugh lift listen look mark measure mention move
notice offer open order paint pass pick plan play plant point press produce promise protect pull push question reach record
remember remove repair repeat report rescue return roll sail save search share shout sign smile start stay stop study suggest
support talk test thank touch trade train travel turn use visit wait walk want warn watch wonder work""".split()
ADJECTIVES = """able bad best big blue bright broad brown busy calm careful cheap clean clear cold common cool curious dark deep
distant dry early easy empty equal famous fast final firm foreign free fresh full general gentle good grand grey happy hard heavy
high honest hot huge important large late light little local lonely long loud low narrow natural new noisy old open patient plain
polite possible private proud public quick quiet rare ready recent red rich rough safe serious sharp short silent simple slow
small smooth soft solid special steady strange strong sudden sweet tall thick thin true usual various warm wide wild wise
wooden wrong yellow young""".split()
LINKS = "because although while when until before after unless since so and but yet whereas though".split()
PLACES = (
    "in under over beside behind between near towards without above across against around beyond "
    "during through upon".split()
)
FOREIGN = {
    "Russian": """и в не на он что с как это по но мы за из у который мочь свой год человек время дело жизнь день рука раз
    работа слово место лицо друг глаз вопрос дом сторона город отношение земля машина вода проблема час право решение
    дверь образ история закон голос книга возможность ночь стол область статья развитие процесс большой новый первый
    последний старый""",
    "Greek": """και το να του η δεν που με για από στο είναι θα ότι μια αυτό αλλά όταν χρόνος άνθρωπος μέρα σπίτι πόλη
    θάλασσα νερό δρόμος βιβλίο λόγος ζωή κόσμος παιδί χέρι μάτι καρδιά νύχτα ήλιος ουρανός γη δουλειά σχολείο φίλος
    ερώτηση απάντηση μεγάλος""",
    "German": """der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus
    Straße Größe Mädchen Übung Wissenschaft Geschichte Möglichkeit Gesellschaft Entwicklung Gemüse Brücke schön früh
    gehören fließen Schlüssel""",
    "French": """de la le et les des en un du une que est pour qui dans par plus pas au sur ne se ce avec cette été élève
    forêt hôtel garçon leçon théâtre où déjà château fenêtre rêve cœur œuvre français première deuxième après-midi
    connaître écrire système""",
    "Spanish": """de la que el en y a los se del las un por con no una su para es al lo como más o pero este también había
    muy años niño mañana corazón canción país día árbol pingüino español sueño último música lápiz jamón acción razón
    desde porque""",
    "Polish": """i w nie na się z do to że jest o jak po co za od przez tak czy ale był dla może tylko czas człowiek życie
    dzień ręka miejsce słowo książka źródło żółty święto pięć dziewięć ćwiczenie łąka jabłko śnieg wieś miłość początek
    koniec piękny""",
    "Arabic": """في من على إلى أن هذا كان التي الذي مع عن كل بعد قبل يوم سنة بيت مدينة كتاب قلم شمس قمر بحر نهر جبل طريق
    سؤال جواب مدرسة عمل حياة عالم كبير صغير جديد قديم جميل سريع بداية نهاية صوت لغة تاريخ""",
    "Hindi": """और के है की का से को पर यह वह नहीं एक हम तुम समय दिन रात घर पानी नदी पहाड़ किताब शब्द जीवन दुनिया मित्र
    प्रश्न उत्तर काम बड़ा छोटा नया पुराना सुंदर सूर्य चाँद आकाश धरती इतिहास भाषा विद्यालय""",
}
HAN = """一二三四五六七八九十百千万天地日月星风雨雪水火山石田土木林花草果叶人口手足耳目头心身父母子朋友老师学生家门窗桌书笔纸
车船路桥城市国大小多少高低长短新旧好明暗上下左右前后内外东西南北中来去走跑看听说读写吃喝睡坐站开关买红黄蓝绿白春夏秋冬年时分早晚今昨
我你他们是不了在有的和也就都很要会能可以这那什么为因所但如果鱼鸟马羊米茶饭衣色声光电气海河湖空园店业工作法理数字语文思想感知觉"""
HAN = "".join(HAN.split())
KANA = "あいうえおかきくけこさしすせそたちつてとなにのはひふへまみむもやゆよらりるれろわをんがぎぐげござじずだでどばびぶべ"
EMOJI = "😀 😂 🤔 👍🏽 🎉 🔥 ❤️ 🚀 🐍 🌍 ☕ 🙏 😢 👩‍💻 🏳️‍🌈 🍕 🎸 🧠 ✅ ❌ ⚽ 🇫🇮 🤷‍♂️ 💡 📈 🐢".split()
HEX = "0123456789abcdef"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def main() -> None:
    texts = list(unrepeated(pieces()))
    for count, what in ((sum(len(t.encode()) for t in texts), "bytes"), (len(texts), "documents")):
        print(f"{count:,} {what}")
    check(texts)
    Random("order").shuffle(texts)
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    OUT.write_bytes(gzip.compress(lines.encode(), 9, mtime=0))
    print(f"{OUT.stat().st_size:,} bytes compressed")


def check(texts: list[str]) -> None:
    assert len(set(texts)) == len(texts), "a document occurs twice"
    long = [line for text in texts for line in text.split("\n") if len(line) >= LONG_LINE]
    assert len(set(long)) == len(long), "a long line occurs twice"


def unrepeated(texts: Iterator[str]) -> Iterator[str]:
    """Long lines that came before are left out: a project's files repeat some."""
    seen = set()
    for text in texts:
        kept = []
        for line in text.split("\n"):
            if len(line) < LONG_LINE or line not in seen:
                kept.append(line)
            if len(line) >= LONG_LINE:
                seen.add(line)
        yield "\n".join(kept)


def pieces() -> Iterator[str]:
    yield from project()
    kinds: dict[Callable[[Random], str], int] = {
        prose: 255,
        foreign: 75,
        han: 20,
        code: 110,
        data: 50,
        table: 45,
        maths: 50,
        chat: 45,
    }
    for kind, count in kinds.items():
        for number in range(count):
            rng = Random(f"{kind.__name__}/{number}")
            yield grown(rng, kind)


def project() -> Iterator[str]:
    """Tracked files, cut at an empty line where there is one in time; short ends are left out."""
    root = HERE.parent
    names = subprocess.run(
        ["git", "ls-files", "*.py", "*.md"], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    for name in names.split("\n"):
        path = root / name
        if not path.is_file() or HERE in path.parents:
            continue
        text = ""
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if len(text) + len(line) > LONGEST or (line == "\n" and len(text) > LONGEST / 2):
                yield text
                text = ""
            text += line
        if len(text) >= SHORTEST:
            yield text


def grown(rng: Random, kind: Callable[[Random], str]) -> str:
    """Parts of one kind, up to a document's length."""
    size, text = rng.randrange(SHORTEST, LONGEST - 800), kind(rng)
    while len(text) < size:
        text += "\n" + kind(rng)
    return text[:LONGEST]


def zipf(rng: Random, words: list[str] | str) -> str:
    """The n-th word n times as rarely as the first, a little flattened."""
    if len(words) not in _WEIGHTS:
        _WEIGHTS[len(words)] = list(accumulate(1 / (n + 8) for n in range(len(words))))
    return rng.choices(words, cum_weights=_WEIGHTS[len(words)])[0]


_WEIGHTS: dict[int, list[float]] = {}


def name(rng: Random) -> str:
    """A syllable or three, such as no dictionary has."""
    onsets, ends = (
        "b br c ch d f g gr h j k kl l m n p r s st t th v w z".split(),
        ["", "n", "r", "s", "l", "th"],
    )
    return "".join(
        rng.choice(onsets) + rng.choice("aeiou") + rng.choice(ends) for _ in range(rng.randint(1, 3))
    ).capitalize()


def noun(rng: Random) -> str:
    word = zipf(rng, NOUNS)
    if rng.random() < 0.12:
        word = rng.choice(("over", "under", "micro", "counter", "re", "non", "sub")) + word
    if rng.random() < 0.1:
        word += rng.choice(("hood", "less", "ship", "like", "-" + rng.choice(NOUNS)))
    return (
        word if rng.random() < 0.7 else word[:-1] + "ies" if word.endswith(("ry", "ty", "dy")) else word + "s"
    )


def phrase(rng: Random) -> str:
    if rng.random() < 0.08:
        return f"{name(rng)} {name(rng)}" if rng.random() < 0.5 else name(rng)
    words = [rng.choice(("the", "the", "a", "this", "every", "some", "our", "their", "no", "another"))]
    if rng.random() < 0.5:
        adjective = zipf(rng, ADJECTIVES)
        words.append(
            adjective
            if rng.random() < 0.7
            else f"un{adjective}"
            if rng.random() < 0.5
            else f"more {adjective}"
        )
    words.append(noun(rng))
    if rng.random() < 0.25:
        words += [rng.choice(PLACES), phrase(rng)] if rng.random() < 0.6 else ["of", phrase(rng)]
    return " ".join(words)


def verb(rng: Random) -> str:
    word = zipf(rng, VERBS)
    stem = word[:-1] if word.endswith("e") else word
    past = word[:-1] + "ied" if word.endswith(("ry", "dy")) else stem + "ed"
    modal = rng.choice(("will", "could", "should", "didn't", "won't", "must"))
    return rng.choice(
        (
            past,
            past,
            f"had {past}",
            f"{modal} {word}",
            f"was {stem}ing",
            f"has been {past}",
            f"kept {stem}ing",
        )
    )


def clause(rng: Random) -> str:
    words = [phrase(rng)]
    if rng.random() < 0.2:
        words.append(zipf(rng, ADJECTIVES) + "ly")
    words.append(verb(rng))
    if rng.random() < 0.8:
        words.append(phrase(rng))
    if rng.random() < 0.15:
        number = rng.randint(1, 99999)
        words.append(rng.choice((f"in {1750 + number % 280}", f"at {number % 100}%", f"for ${number:,}")))
    return " ".join(words)


def sentence(rng: Random) -> str:
    text = clause(rng)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        text += rng.choice((", ", " ", "; ")) + rng.choice(LINKS) + " " + clause(rng)
    if rng.random() < 0.1:
        text = f'"{text}," said {name(rng)}'
    if rng.random() < 0.15:
        text += f" ({phrase(rng)}, {phrase(rng)})"
    return text[0].upper() + text[1:] + rng.choice("....?!")


def prose(rng: Random) -> str:
    title = f"## {phrase(rng).title()}\n\n" if rng.random() < 0.15 else ""
    return title + " ".join(sentence(rng) for _ in range(rng.randint(3, 8))) + "\n"


def foreign(rng: Random) -> str:
    """Words of one language with endings of its own letters; sense is not meant."""
    words = rng.choice(list(FOREIGN.values())).split()
    said = []
    for _ in range(rng.randint(40, 100)):
        word = zipf(rng, words)
        if len(word) > 4 and rng.random() < 0.5:
            other = rng.choice(words)
            word = word[: rng.randint(3, len(word))] + other[-2:]
        said.append(word + rng.choices(("", ",", ".", "!", " –"), (80, 8, 8, 2, 2))[0])
    return " ".join(said) + ".\n"


def han(rng: Random) -> str:
    """Chinese, Japanese and Korean letters, for lack of their words."""
    kind, said = rng.choice(("zh", "ja", "ko")), []
    for _ in range(rng.randint(40, 90)):
        if kind == "ko":
            said.append(
                "".join(chr(0xAC00 + int(11172 * rng.random() ** 2)) for _ in range(rng.randint(1, 4))) + " "
            )
        else:
            said.append("".join(zipf(rng, HAN) for _ in range(rng.randint(1, 2))))
        if kind == "ja":
            said.append("".join(zipf(rng, KANA) for _ in range(rng.randint(1, 4))))
        if rng.random() < 0.12:
            said.append(rng.choice("，。、？！" if kind != "ko" else ",.?!"))
    return "".join(said) + "\n"


def identifier(rng: Random, style: str) -> str:
    words = [zipf(rng, rng.choice((NOUNS, VERBS, ADJECTIVES))) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
    return words[0] + "".join(w.capitalize() for w in words[1:]) if style == "js" else "_".join(words)


def expression(rng: Random, names: list[str], depth: int = 0) -> str:
    kind = rng.random()
    if depth > 2 or kind < 0.3:
        return rng.choice(names)
    if kind < 0.45:
        return rng.choice(
            (str(rng.randint(0, 300)), f"{rng.random() * 10:.2f}", f"0x{rng.getrandbits(24):x}")
        )
    if kind < 0.55:
        return f'"{zipf(rng, NOUNS)} {zipf(rng, VERBS)}"'
    if kind < 0.8:
        return (
            f"{expression(rng, names, depth + 1)} {rng.choice('+-*/%&|')} {expression(rng, names, depth + 1)}"
        )
    return f"{rng.choice(names)}({', '.join(expression(rng, names, depth + 1) for _ in range(rng.randint(0, 3)))})"


def code(rng: Random) -> str:
    """A function of nested statements, in Python, C or JavaScript."""
    style = rng.choice(("py", "c", "js"))
    names = [identifier(rng, style) for _ in range(rng.randint(4, 9))]
    opening, closing, end = (":", "", "") if style == "py" else (" {", "}", ";")
    note = "#" if style == "py" else "//"
    lines = []

    def block(depth: int) -> None:
        pad = "    " * depth
        for _ in range(rng.randint(2, 5)):
            kind, value = rng.random(), expression(rng, names)
            if kind < 0.25 and depth < 4:
                test = f"{rng.choice(names)} {rng.choice(('<', '>=', '==', '!='))} {value}"
                word = rng.choice(("if", "while"))
                lines.append(f"{pad}{word} {test}:" if style == "py" else f"{pad}{word} ({test}) {{")
                block(depth + 1)
                if closing:
                    lines.append(pad + closing)
            elif kind < 0.75:
                declared = {"py": "", "c": "double ", "js": "const "}[style] if rng.random() < 0.5 else ""
                lines.append(f"{pad}{declared}{rng.choice(names)} = {value}{end}")
            elif kind < 0.88:
                lines.append(f"{pad}{note} {sentence(rng)}")
            else:
                lines.append(f"{pad}{rng.choice(names)}({value}, {expression(rng, names)}){end}")
        lines.append(f"{pad}return {expression(rng, names)}{end}")

    head = {"py": "def {}({})", "c": "static int {}(int {})", "js": "export function {}({})"}[style]
    lines.append(head.format(identifier(rng, style), ", ".join(sorted(set(names[:2])))) + opening)
    block(1)
    return "\n".join([*lines, closing]) + "\n"


def data(rng: Random) -> str:
    def value(depth: int):
        kind = rng.random()
        if depth < 3 and (depth == 0 or kind < 0.3):
            return {identifier(rng, "js"): value(depth + 1) for _ in range(rng.randint(2, 6))}
        if depth < 3 and kind < 0.4:
            return [value(depth + 1) for _ in range(rng.randint(1, 4))]
        number, code = rng.randint(0, 10**6), token(rng, HEX, 12)
        return rng.choice((number, round(rng.random(), 4), True, None, phrase(rng), name(rng), code))

    return json.dumps(value(0), indent=rng.choice((None, 2)))


def token(rng: Random, letters: str, size: int) -> str:
    return "".join(rng.choices(letters, k=size))


def table(rng: Random) -> str:
    """CSV, Markdown, or a log."""
    kind, rows = rng.choice(("csv", "markdown", "log")), rng.randint(5, 12)
    if kind == "log":
        day = f"20{rng.randint(10, 29)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        levels = ("INFO", "WARN", "ERROR", "DEBUG")
        return "\n".join(
            f"{day} {rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.random() * 60:06.3f} "
            f"{rng.choice(levels)} "
            f"[{name(rng).lower()}] {clause(rng)} id={token(rng, HEX, 8)} took {rng.random() * 900:.1f}ms"
            for _ in range(rows)
        )
    heads = [identifier(rng, "py") for _ in range(rng.randint(3, 6))]
    kinds = [rng.randrange(4) for _ in heads]

    def cell(kind: int) -> str:
        return (str(rng.randint(-999, 10**5)), f"{rng.gauss(0, 50):.3f}", name(rng), noun(rng))[kind]

    body = [[cell(kind) for kind in kinds] for _ in range(rows)]
    if kind == "csv":
        return "\n".join(",".join(row) for row in (heads, *body)) + "\n"
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *body)) + "\n"


def term(rng: Random, depth: int = 0) -> str:
    greek = ("alpha", "beta", "gamma", "theta", "lambda", "mu", "sigma", "phi", "omega", "nabla f")
    kind = rng.randrange(9 if depth < 3 else 3)
    if kind == 0:
        return rng.choice(LETTERS) + (f"_{{{rng.choice(LETTERS)}}}" if rng.random() < 0.4 else "")
    if kind == 1:
        return "\\" + rng.choice(greek)
    if kind == 2:
        return str(rng.randint(1, 99))
    a, b = term(rng, depth + 1), term(rng, depth + 1)
    bound = f"_{{{rng.choice('ijkn')}={rng.randint(0, 1)}}}^{{{rng.choice('nmNK')}}}"
    return (
        f"\\frac{{{a}}}{{{b}}}",
        f"{a} + {b}",
        f"\\left({a} - {b}\\right)^{{{rng.randint(2, 5)}}}",
        f"\\sum{bound} {a} {b}",
        f"\\int_0^{{{a}}} {b}\\,dx",
        f"\\sqrt{{{a} \\cdot {b}}}",
    )[kind - 3]


def maths(rng: Random) -> str:
    x, y = rng.randint(2, 999), rng.randint(2, 999)
    return (
        f"{sentence(rng)} Let ${term(rng)} = {term(rng)}$ and ${term(rng)} \\le {term(rng)}$; then\n"
        f"\\[ {term(rng)} = {term(rng)}, \\qquad {term(rng)} \\ne {term(rng)}. \\]\n"
        f"{name(rng)} has {x} {noun(rng)} and buys {y} more: {x} + {y} = {x + y}, {x} × {y} = {x * y}. So "
        f"{x / y:.4f}.\n"
    )


def chat(rng: Random) -> str:
    people, lines = [name(rng) for _ in range(3)], []
    for _ in range(rng.randint(4, 9)):
        said = (
            clause(rng)
            if rng.random() < 0.7
            else f"{rng.choice(('lol', 'omg', 'hmm', 'yep', 'nope', 'brb'))} {phrase(rng)}"
        )
        if rng.random() < 0.15:
            said += f" https://{name(rng).lower()}.example/{token(rng, LETTERS + HEX, 7)}?q={rng.randint(1, 9999)}"
        said += " " + "".join(rng.choices(EMOJI, k=rng.randint(0, 3)))
        lines.append(
            f"[{rng.randint(0, 23):02}:{rng.randint(0, 59):02}] <{rng.choice(people)}> {said.strip()}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
