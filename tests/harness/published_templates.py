"""Chat templates in the manner of those that well known models were published with, one a file in `templates/`.

The templates of the small checkpoints that stand for families are among them.

Control tokens, constructs and logic are theirs, since it is those that a renderer can get wrong; sentences are ours.
"""

from collections import Counter
from pathlib import Path

from families import GEMMA_CHAT
from small_tokenizers import CHATML, LLAMA3_CHAT, PHI3_CHAT

PUBLISHED = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}
FAMILIES = {
    "small chatml": CHATML, "small gemma": GEMMA_CHAT, "small llama3": LLAMA3_CHAT, "small phi3": PHI3_CHAT,
}  # fmt: skip
TEMPLATES = {**PUBLISHED, **FAMILIES}
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

# Branches that no chat reaches: the line and the kind of each, by the reason why.
ARGUMENT = "it needs a variable that only a caller who knows the template passes"
TESTED = "the loop stands behind a test that there is something to loop over"
EMPTY = "transformers refuses a chat without messages"
ALWAYS = "its test has one outcome: a constant, a variable that is always passed, or what earlier tests leave"

UNREACHED: dict[str, dict[str, list[tuple[int, str]]]] = {
    "chatml": {EMPTY: [(1, "no loop")]},
    "command-r": {ALWAYS: [(1, "if")]},
    "command-r-tools": {EMPTY: [(28, "no loop")], TESTED: [(40, "no loop")]},
    "deepseek-r1-distill": {ALWAYS: [(1, "if")], EMPTY: [(1, "no loop"), (1, "no loop")]},
    "falcon-3": {TESTED: [(10, "no loop")]},
    "gemma-2": {EMPTY: [(1, "no loop")]},
    "gpt-oss": {
        ALWAYS: [(4, "else")],  # spec['items'] is a dict's own method where the key is absent
        ARGUMENT: [(29, "else")],
        TESTED: [(15, "no loop"), (47, "no loop"), (52, "no loop")],
    },
    "granite-3": {
        ARGUMENT: [
            (6, "if"), (10, "if"), (12, "if"), (23, "if"), (25, "loop"), (25, "no loop"), (28, "if"), (28, "else"),
            (38, "if"),
        ],
    },
    "hermes-tools": {ALWAYS: [(18, "else")], EMPTY: [(69, "no loop")]},  # all types there are iterable
    "internlm2": {ALWAYS: [(15, "no loop")]},  # split gives one part at least
    "llama-3.1": {
        ARGUMENT: [
            (2, "if"), (5, "else"), (8, "else"), (31, "if"), (36, "if"), (39, "loop"), (39, "no loop"), (74, "if"),
            (77, "loop"), (77, "no loop"), (79, "if"), (79, "else"), (91, "if"),
        ],
        ALWAYS: [(9, "else"), (15, "if"), (96, "else")],
    },
    "mistral-nemo": {TESTED: [(18, "no loop")]},
    "mistral-v3": {ALWAYS: [(7, "if")], TESTED: [(32, "no loop")]},
    "qwen2.5": {EMPTY: [(21, "no loop")], TESTED: [(9, "no loop"), (29, "no loop")]},
    "qwen3": {
        ARGUMENT: [(86, "if")],
        EMPTY: [(18, "no loop"), (25, "no loop")],
        TESTED: [(7, "no loop"), (53, "no loop")],
    },
    "smollm3": {
        ARGUMENT: [(2, "else"), (5, "else"), (35, "else"), (42, "if")],
        EMPTY: [(48, "no loop")],
        TESTED: [(37, "no loop")],
    },
    "mistral-v1": {EMPTY: [(1, "no loop")]},
    "olmo": {EMPTY: [(1, "no loop")]},
    "phi-3-mini": {EMPTY: [(1, "no loop")]},
    "phi-3.5": {EMPTY: [(1, "no loop")]},
    "phi-4-mini": {EMPTY: [(1, "no loop")]},
    "phi-4": {EMPTY: [(1, "no loop")]},
    "stablelm": {EMPTY: [(1, "no loop")]},
    "tinyllama": {EMPTY: [(1, "no loop")]},
    "zephyr": {EMPTY: [(1, "no loop")]},
    "small gemma": {EMPTY: [(1, "no loop")]},
    "small chatml": {EMPTY: [(1, "no loop")]},
    "small llama3": {EMPTY: [(2, "no loop")]},
    "small phi3": {EMPTY: [(1, "no loop")]},
    "yi": {ALWAYS: [(1, "if")], EMPTY: [(1, "no loop")]},
}  # fmt: skip


def unreached(name: str) -> Counter[tuple[int, str]]:
    return Counter(place for places in UNREACHED.get(name, {}).values() for place in places)
