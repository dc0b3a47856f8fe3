#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/tokenizer/: small tokenizers made by Hugging Face `tokenizers`, and the ids it gives for some texts.

Run it from the repository root with a Python that has `tokenizers` (made with 0.23):  python3 tools/make_tokenizer_golden.py
"""
import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

OUT = pathlib.Path("tests/golden/tokenizer")

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog didn't mind; it's used to foxes, and they're used to dogs.",
    "int main(int argc, char** argv) {\n    for (int i = 0; i < argc; ++i) {\n\t\tprintf(\"%d\\n\", i);\n    }\n}\n",
    "토크나이저는 글을 작은 조각으로 나눕니다. 나누는 방법은 글에서 배웁니다. 글을 나누는 방법은 여러 가지입니다.",
    "Der schnelle braune Fuchs springt über den faulen Hund; größer, schöner, süßer. Naïve café, déjà vu.",
    "In 1984 there were 1234567 of them, in 2024 about 89.5 % fewer: 1984, 2024, 1984, 2024.",
    "aaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbb aaaa bb aaaaaaaa",
]

TEXTS = CORPUS + [
    "",
    " ",
    "   ",
    "\n",
    "a",
    " leading and trailing ",
    "tabs\t\tand  two   three spaces\r\n\r\nnew lines \n\n\n end",
    "can't CAN'T we'll I'VE you're he'd'd ''s",
    "x" * 70 + " " + "the" * 30 + " " + "ab" * 40,
    "Unicode: \u00a0no-break \u3000ideographic \u180emongolian \u200bzero \u0085next \u2028line",
    "combining e\u0301 a\u0308; emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467; \u0663\u0664 \u00bd \u2167",
    "end<|endoftext|>start <|endoftext|><|endoftext|> <|endof text|> <|im|>x<|im|>er",
    "code    indented        by eight <pad>",
    "汉字 and ひらがな mixed, русский текст, ελληνικά, العربية",
    "\x00\x01\x7f control",
]

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")


def trained(pre_tokenizer, specials, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def make_gpt2():
    """Special token first, merges as pairs, the GPT-2 pattern."""
    return trained(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"], 420)


def make_llama3():
    """Split before ByteLevel, ignore_merges, special tokens behind the vocabulary, one a prefix of another."""
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer = trained(split, [], 400)
    whole = json.loads(tokenizer.to_str())
    vocab = whole["model"]["vocab"]
    for word in ("Ġquick", "Ġfaulen"):  # reachable only because a whole piece is looked up before the merges
        vocab.setdefault(word, len(vocab))
    whole["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im|>", "<|im|>er"])
    return tokenizer


def make_neox():
    """Added tokens that are not special (runs of spaces), merges in the older form "a b"."""
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>", "<pad>"], 380)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (8, 4, 2)])
    whole = json.loads(tokenizer.to_str())
    whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
    return Tokenizer.from_str(json.dumps(whole)), whole


def make_prefix():
    """A space put before the text."""
    return trained(pre_tokenizers.ByteLevel(add_prefix_space=True), ["</s>"], 380)


def make_digits():
    """Three rules, one after the other."""
    return trained(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                 pre_tokenizers.Split("ab", "isolated"),
                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]), ["<eos>"], 380)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name, made in (("gpt2", make_gpt2()), ("llama3", make_llama3()), ("neox", make_neox()),
                       ("prefix", make_prefix()), ("digits", make_digits())):
        tokenizer, whole = made if isinstance(made, tuple) else (made, json.loads(made.to_str()))
        cases = []
        for text in TEXTS:
            tokenizer.encode_special_tokens = False
            case = {"text": text, "tokens": tokenizer.encode(text, add_special_tokens=False).ids}
            tokenizer.encode_special_tokens = True
            case["plain"] = tokenizer.encode(text, add_special_tokens=False).ids
            cases.append(case)
        for path, value in ((OUT / f"{name}.json", whole), (OUT / f"{name}.ids.json", cases)):
            path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
