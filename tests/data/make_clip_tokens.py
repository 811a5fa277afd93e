"""Writes clip_tokens.json: token ids from CLIP's own tokenizer.

    python tests/data/make_clip_tokens.py open_clip_torch-3.3.0-py3-none-any.whl

Runs `SimpleTokenizer` as open-clip ships it (OpenAI's code), with regex and
ftfy installed but without PyTorch, which it only needs for its return type.

The reference first cleans texts with ftfy and undoes HTML escapes; clipmill
does neither, beyond Unicode's NFC. So every text here is one that this
cleaning leaves alone but for NFC and outer white space; the script checks it.
"""

import html
import importlib.util
import json
import sys
import tempfile
import unicodedata
import zipfile
from pathlib import Path
from unittest.mock import MagicMock

CONTEXT = 77
START, END, FILL = 49406, 49407, 0

TEXTS = [
    "",
    "a",
    "a photo of a dog",
    "A Photo Of A DOG",
    "  two   spaces,\ta tab\nand a newline  ",
    "it's what they've said: we'll go, I'd stay, you're late, I'm not, don't",
    "IT'S LOUD, THEY'RE SHOUTING",
    "'quoted' 's 'tis rock 'n' roll",
    "in 1984 there were 365 days and 3.14159 pies",
    "route66 4x4 mp3 h264",
    "wait... what?! (really) [yes] {no} <maybe> #tag @you 50% $5 a/b a_b a-b c++",
    "!!!???;;;:::",
    "naïve café, über Straße, El Niño, Ångström",  # composed (NFC)
    unicodedata.normalize("NFD", "naïve café, über Straße, El Niño, Ångström"),  # decomposed
    "ÀÉÎÕÜ ŁÓDŹ ČESKÝ",
    "привет мир, ПРИВЕТ",
    "Ελληνικά ΑΘΗΝΑ",
    "一只狗在公园里跑步",
    "猫が窓辺で寝ている 東京タワー",
    "고양이와 강아지",
    "कुत्ता पार्क में",
    "a dog 🐶 on a beach 🏖️ with friends 👩‍👩‍👧‍👦 🇫🇷",
    "½ cup + ² squared ∑ → ∞ €20",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "person riding a bicycle down a rocky mountain trail, " * 12,  # too long: cut to 77
    " ".join(["dog"] * 75),  # fits exactly
    " ".join(["dog"] * 76),  # one too many
]


def load_reference(wheel):
    """Imports open_clip/tokenizer.py on its own, as the package wants PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tokenizer.py", "bpe_simple_vocab_16e6.txt.gz"):
            (Path(folder) / name).write_bytes(zipfile.ZipFile(wheel).read(f"open_clip/{name}"))
        sys.modules["torch"] = MagicMock()
        spec = importlib.util.spec_from_file_location("open_clip_tokenizer", Path(folder) / "tokenizer.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module, module.SimpleTokenizer()


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_clip_tokens.py OPEN_CLIP_WHEEL")
    module, tokenizer = load_reference(sys.argv[1])
    rows = []
    for text in TEXTS:
        cleaned = html.unescape(module.ftfy.fix_text(text))
        if cleaned != unicodedata.normalize("NFC", text):
            sys.exit(f"the reference would clean {text!r} to {cleaned!r}: choose another text")
        ids = [START, *tokenizer.encode(text), END]
        if len(ids) > CONTEXT:
            ids = [*ids[: CONTEXT - 1], END]
        ids += [FILL] * (CONTEXT - len(ids))
        rows.append({"text": text, "ids": ids})
    lines = ",\n".join(json.dumps(row, ensure_ascii=True) for row in rows)
    Path(__file__).with_name("clip_tokens.json").write_text(f"[\n{lines}\n]\n", encoding="ascii")
    print(f"clip_tokens.json: {len(rows)} texts", file=sys.stderr)


if __name__ == "__main__":
    main()
