"""Small tokenizers of each kind, trained here, as a checkpoint's files and as the builder's folder without weights."""

import json
from pathlib import Path
from typing import Any

from slmpack.checkpoint.chat_format import write_chat_format
from slmpack.checkpoint.texts.sample_texts import CODE, PROSE, SCRIPTS
from slmpack.checkpoint.tokenizer import read_tokenizer
from slmpack.machine.json_file import write_json

Rules = dict[str, Any]

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"
TRAINING_TEXTS = PROSE + CODE + SCRIPTS

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_CHAT = (
    "{{- bos_token }}{% if messages[0]['role'] != 'system' %}{{- 'Today Date: ' + strftime_now('%d %b %Y') + '\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | "
    "trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PHI3_CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def split(expression: str) -> Rules:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def byte_level(
    *steps: Rules, specials: tuple[str, ...], own_expression: bool = False, texts: tuple[str, ...] = TRAINING_TEXTS
) -> Rules:
    """Train byte-level merges on `texts`; `steps` come before `ByteLevel`, which splits words itself if asked to."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own_expression}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(specials))
    rules: Rules = json.loads(tokenizer.to_str())
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return rules | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, last]}, "decoder": decoder}


def sentencepiece(specials: tuple[str, ...], strips_right: bool = True) -> Rules:
    """Train merges with byte fallback, and spell them as Llama 2's and Phi-3's files do."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # SentencePiece merges neither over words nor letters with marks, and its digits stand alone.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\p{L}+|▁?[^▁\p{L}\p{N}]|\p{N}|▁+"), "isolated")
    named = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=named, show_progress=False)
    tokenizer.train_from_iterator((text for text in TRAINING_TEXTS if "\n" not in text and "\t" not in text), trainer)
    rules: Rules = json.loads(tokenizer.to_str())
    rules |= {"pre_tokenizer": None, "added_tokens": rules["added_tokens"][:3]}  # bytes are no special tokens
    tokenizer = Tokenizer.from_str(json.dumps(rules))
    added = [AddedToken(text, rstrip=strips_right, normalized=False) for text in specials]
    tokenizer.add_special_tokens(added)
    after = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(after)
    spelled: Rules = json.loads(tokenizer.to_str())
    return spelled


def write_source(
    folder: Path, rules: Rules, template: str, named: dict[str, str], end_tokens: tuple[str, ...], kind: str
) -> Path:
    """Write the tokenizer's files of a checkpoint.

    Args:
        named: `bos_token`, `eos_token`, ... to their texts.
        end_tokens: `eos_token_id` of generation_config.json, as texts.
        kind: `tokenizer_class` of tokenizer_config.json.
    """
    folder.mkdir(parents=True)
    write_json(folder / "tokenizer.json", rules)
    write_json(folder / "tokenizer_config.json", {**named, "tokenizer_class": kind})
    (folder / "chat_template.jinja").write_text(template)
    write_json(folder / "generation_config.json", {"eos_token_id": [token_id(rules, text) for text in end_tokens]})
    return folder


def write_package(folder: Path, source: Path, end_tokens: tuple[str, ...]) -> Path:
    """Write what a build writes but weights: the tokenizer as transformers saves it, and the two configurations."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    rules = json.loads((source / "tokenizer.json").read_text())
    ids = [token_id(rules, text) for text in end_tokens]
    rows = max(vocabulary(rules).values()) + 1
    model = {"type": "phi3", "vocab_size": rows, "context_length": 4096, "eos_token_id": ids, "pad_token_id": ids[0]}
    write_json(folder / "genai_config.json", {"model": model, "search": {}})
    write_chat_format(folder, read_tokenizer(source))
    return folder


def vocabulary(rules: Rules) -> dict[str, int]:
    words = rules["model"]["vocab"]
    if isinstance(words, list):  # Unigram: texts with their log-probabilities
        words = {text: index for index, (text, _) in enumerate(words)}
    return dict(words) | {token["content"]: token["id"] for token in rules["added_tokens"]}


def token_id(rules: Rules, text: str) -> int:
    return vocabulary(rules)[text]
