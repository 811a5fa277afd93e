"""Writes spiece.model, spiece-bytes.model and spiece_tokens.json.

    python tests/data/make_spiece_tokens.py
    python tests/data/make_spiece_tokens.py --full DIR

Trains two small SentencePiece unigram models on text made here, and lets
SentencePiece itself cut TEXTS. `spiece.model` has the settings of SigLIP's and
T5's (padding 0, end 1, unknown 2); `spiece-bytes.model` has the other way of
every setting: bytes for unknown characters, pieces that are never cut, spaces
kept and at the end of words.

SentencePiece's own table of replacements (nmt_nfkc) has 240 KB, so these
models have a table of their own: NFKC of the characters in RANGES, and what
nmt adds (odd spaces become spaces, control characters go). With --full, models
with the library's tables (nmt_nfkc and nmt_nfkc_cf) and ten thousand random
texts are written to DIR, to be compared by `CLIPMILL_SPIECE=DIR cargo test`.
"""

import argparse
import json
import random
import re
import string
import sys
import tempfile
import unicodedata
from pathlib import Path

import sentencepiece as spm

HERE = Path(__file__).resolve().parent

SUBJECTS = "a person|two people|a dog|the brown dog|children|a cyclist|a goalkeeper|an old man|a woman in red|cats|a train|the crowd|a chef|a drummer|surfers|rabbits"
VERBS = "rides|is riding|jumps over|plays with|is playing|throws|runs past|looks at|is cooking|cleans|films|paints|walks along|dances near|waits for|repairs"
OBJECTS = "a bicycle|the ball|a wooden fence|a guitar|the beach|soup|a mountain trail|the river|a red car|an empty street|a piano|the goal|a horse|snow|the window|a camera"
PLACES = "in the park|at night|on stage|during the match|under the bridge|in a kitchen|by the sea|in slow motion|from above|in the rain|at the station|on television"
FOREIGN = [
    "ein Mann fährt über die Straße",
    "deux chiens jouent dans la forêt",
    "el niño corre por la montaña",
    "猫が窓辺で寝ている",
    "собака бежит по улице",
    "고양이와 강아지",
]

# First and last character of what NFKC is taken of.
RANGES = [(0x80, 0x17F), (0x1C4, 0x233), (0x300, 0x341), (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x2070, 0x209C),
          (0x2100, 0x218B), (0x2460, 0x249B), (0x3000, 0x30FF), (0xFB00, 0xFB06), (0xFF01, 0xFFEE)]
MARKS = "\u0300\u0301\u0302\u0303\u0308\u030a\u0327\u3099\u309a\uff9e\uff9f"

TEXTS = [
    "",
    " ",
    "a",
    "a person rides a bicycle in the park",
    "  two   spaces,\ta tab\nand a newline  ",
    "A Person RIDES",
    "unknown: xylophone quizzes, jazz & 42 zebras!",
    "it's what they've said... (really?) [yes] {no} <maybe> #tag @you 50% a/b a_b",
    "naïve café, über Straße, El Niño, Ångström",
    unicodedata.normalize("NFD", "naïve café, über Straße, El Niño, Ångström"),
    "e\u0301\u0327 stacked marks, a\u030a\u0301",
    "ﬁne ﬂow ﬀ ﬃ ſt",
    "ＦＵＬＬ　ｗｉｄｔｈ １２３！",
    "½ cup + ² squared ① ② ℃ № ™ €20",
    "猫が窓辺で寝ている 東京タワー",
    "ｶﾞｷﾞｸﾞ がぎぐ か\u3099 は\u309a",
    "собака бежит по улице, ПРИВЕТ",
    "고양이와 강아지",
    "कुत्ता पार्क में",
    "a dog 🐶 on a beach 🏖️ with 👩\u200d👩\u200d👧\u200d👦 🇫🇷",
    "🐶🐶🐶",
    "zero\u200bwidth, no\u00a0break, thin\u2009space, soft\u00adhyphen, bom\ufeff",
    "\u2581already\u2581marked",
    "\u2581\u2581 \u2581",
    "control \x07 bell \x7f del \x00 nul",
    "</s> <s> <unk> <pad> <0x41> are only text",
    "<video> a dog <video><video> runs",
    "Ⅷ Ⓐ ㍿ ﷺ",
    "trailing space ",
    "\u3000ideographic\u3000",
    "a person is riding a bicycle " * 30,
    "…‥․ ″′ — – -",
    "ǅ ǆ ĳ ŉ",
]


def corpus():
    """Eight thousand sentences, the same on every run."""
    rng = random.Random(7)
    pick = lambda words: rng.choice(words.split("|"))
    syllables = [a + b + c for a in "b d f g k l m n p r s t w".split() for b in "aeiou" for c in ["", "n", "r", "st"]]
    names = ["".join(rng.choices(syllables, k=rng.randrange(1, 4))) for _ in range(900)]
    for i in range(8000):
        name = rng.choice(names)
        sentence = f"{pick(SUBJECTS)} {pick(VERBS)} {pick(OBJECTS)} {pick(PLACES)} of {name}"
        yield sentence if i % 3 else sentence.capitalize() + rng.choice([".", "!", ", again.", " (1984)"])
        if i % 10 == 0:
            yield rng.choice(FOREIGN)


def rules():
    """The lines of a table of replacements: code points, a tab, code points."""
    nfkc = lambda text: unicodedata.normalize("NFKC", text)
    letters = [chr(code) for first, last in RANGES for code in range(first, last + 1)]
    table = {letter: nfkc(letter) for letter in letters}
    for letter in [*letters, *string.ascii_letters]:
        for mark in MARKS:
            if nfkc(letter + mark) != nfkc(letter) + nfkc(mark):
                table[letter + mark] = nfkc(letter + mark)
    for code in [*range(0x1, 0x9), 0xB, *range(0xE, 0x20), 0x7F, 0x8F, 0x9F]:
        table[chr(code)] = ""
    for space in "\t\n\f\r\x85\xa0\u1680\u200b\u200e\u200f\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\ufffd":
        table[space] = " "
    hexes = lambda text: " ".join(f"{ord(c):X}" for c in text)
    return "".join(f"{hexes(k)}\t{hexes(v)}\n" for k, v in sorted(table.items()) if k != v)


def train(prefix, folder, **settings):
    text = folder / "corpus.txt"
    text.write_text("\n".join(corpus()) + "\n", encoding="utf-8")
    if "normalization_rule_name" not in settings:
        table = folder / "rules.tsv"
        table.write_text(rules(), encoding="ascii")
        settings["normalization_rule_tsv"] = str(table)
    spm.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(prefix), model_type="unigram", hard_vocab_limit=False,
        character_coverage=1.0, num_threads=1, minloglevel=2, **settings,
    )
    prefix.with_suffix(".vocab").unlink()


def without_paths(model):
    """The trainer notes where its input lay; that is nobody's business."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    parsed = proto.ModelProto.FromString(model.read_bytes())
    del parsed.trainer_spec.input[:]
    parsed.trainer_spec.model_prefix = ""
    parsed.normalizer_spec.normalization_rule_tsv = ""
    model.write_bytes(parsed.SerializeToString(deterministic=True))


LIKE_SIGLIP = dict(vocab_size=1000, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
OTHER_WAY = dict(
    vocab_size=800, byte_fallback=True, user_defined_symbols=["<video>"], remove_extra_whitespaces=False,
    treat_whitespace_as_suffix=True,
)


def siglip_clean(text):
    """`do_lower_case` and `canonicalize_text` of transformers' SiglipTokenizer, told in one line each."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", text).strip()


def rows(folder, name, texts):
    model = spm.SentencePieceProcessor(model_file=str(folder / name))
    for text in texts:
        yield {"model": name, "text": text, "ids": [*model.encode(text), model.eos_id()]}
        if name == "spiece.model":
            cleaned = siglip_clean(text)
            yield {"model": name, "text": text, "cleaned": True, "ids": [*model.encode(cleaned), model.eos_id()]}


def write_golden(folder, found):
    lines = ",\n".join(json.dumps(row, ensure_ascii=True) for row in found)
    (folder / "spiece_tokens.json").write_text(f"[\n{lines}\n]\n", encoding="ascii")
    print(f"{folder / 'spiece_tokens.json'}: {len(found)} rows", file=sys.stderr)


def random_texts():
    rng = random.Random(11)
    blocks = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0x97F),
              (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x2BFF), (0x3000, 0x33FF), (0x4E00, 0x4FFF),
              (0xAC00, 0xADFF), (0xF900, 0xFDFF), (0xFE00, 0xFFEF), (0x1F300, 0x1F6FF), (0x0, 0x1F)]
    words = re.split(r"[| ]", f"{SUBJECTS}|{VERBS}|{OBJECTS}|{PLACES}")
    for _ in range(10_000):
        parts = []
        for _ in range(rng.randrange(12)):
            first, last = rng.choice(blocks)
            letters = "".join(chr(rng.randint(first, last)) for _ in range(rng.randrange(1, 5)))
            parts.append(rng.choice([letters, letters, rng.choice(words), " ", "  ", "\u2581"]))
        yield "".join(parts)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", type=Path, metavar="DIR")
    full = parser.parse_args().full
    with tempfile.TemporaryDirectory() as folder:
        if full:
            full.mkdir(parents=True, exist_ok=True)
            train(full / "spiece", Path(folder), normalization_rule_name="nmt_nfkc", **LIKE_SIGLIP)
            train(full / "spiece-bytes", Path(folder), normalization_rule_name="nmt_nfkc_cf", **OTHER_WAY)
            texts = [*TEXTS, *random_texts()]
        else:
            full, texts = HERE, TEXTS
            train(HERE / "spiece", Path(folder), **LIKE_SIGLIP)
            train(HERE / "spiece-bytes", Path(folder), **OTHER_WAY)
    found = []
    for name in ["spiece.model", "spiece-bytes.model"]:
        without_paths(full / name)
        found.extend(rows(full, name, texts))
    write_golden(full, found)


if __name__ == "__main__":
    main()
