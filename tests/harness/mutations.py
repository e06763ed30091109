"""Mutations: damaged copies of a valid file, each the same for the same random numbers.

    mutate_bytes    flips, cuts, fields that are set to the largest numbers, pieces twice or left out
    mutate_json     values of other types, keys twice, left out or in each other, numbers beyond every type, nesting
    mutate_yaml     the same, and what only YAML has: tags, aliases that grow, merge keys

What `json.dumps` cannot write stands in the tree as a text, RAW and a number, and is put in its place afterwards.
"""

import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

RAW, DUPLICATE = "\ue000raw:", "\ue000twice:"
EXTREMES = (0, 1, 2**7, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = ("", "\0", "\ud800", "\udfff\ud800", "a" * 100_000, "../..", "/etc/passwd", "\x1b[31m", "{{ 1 // 0 }}",
         "é" * 999, "%s%n", "NaN", "\u202e", "[" * 5000, "\r\n")  # fmt: skip
NUMBERS = ("1e999", "-1e999", "NaN", "-Infinity", "1e-999", "-0", "9" * 4000, "9" * 5000, "18446744073709551616", "-1",
           "0.5", "1e308", "2147483648")  # fmt: skip
NESTED = ("[" * 40 + "]" * 40, "[" * 900 + "]" * 900, "[" * 50_000 + "]" * 50_000, "[" * 50_000,
          '{"a":' * 900 + "1" + "}" * 900)  # fmt: skip
OF_YAML = (
    "!!python/object/apply:os.getcwd []", "!!binary 'no base 64'", "!!int x", "!!timestamp 9999-99-99", "2001-01-01",
    "!!set {a, b}", "!!omap [{a: 1}]", "&x [*x]", "*nowhere", "{<<: [1, 2]}", "{? [a, b] : c}", "190:20:30", "0o9", "~",
    "!unknown {a: b}", "[&a [1, 2, 3, 4, 5, 6, 7, 8, 9], &b [*a, *a, *a, *a, *a, *a, *a, *a, *a], &c [*b, *b, *b, *b,"
    " *b, *b, *b, *b], &d [*c, *c, *c, *c, *c, *c, *c], &e [*d, *d, *d, *d, *d, *d, *d], &f [*e, *e, *e, *e, *e, *e],"
    " &g [*f, *f, *f, *f, *f, *f], &h [*g, *g, *g, *g, *g, *g], [*h, *h, *h, *h, *h, *h]]",
)  # fmt: skip

_ALL_RAW = NUMBERS + NESTED + OF_YAML


def mutate_bytes(rng: random.Random, content: bytes, head: int = 4096) -> bytes:
    """Return a damaged copy; three quarters of the damage lie within the first `head` bytes."""
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not content:
            return bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
        end = min(head, len(content)) if rng.random() < 0.75 else len(content)
        content = rng.choice(_OF_BYTES)(rng, content, rng.randrange(end))
    return content


def _flip(rng: random.Random, content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def _cut(rng: random.Random, content: bytes, at: int) -> bytes:
    return content[:at]


def _set_field(rng: random.Random, content: bytes, at: int) -> bytes:
    width, form = rng.choice(((1, "B"), (4, "<I"), (8, "<Q")))
    field = struct.pack(form, rng.choice(EXTREMES) % (1 << 8 * width))
    return content[:at] + field + content[at + width :]


def _leave_out(rng: random.Random, content: bytes, at: int) -> bytes:
    return content[:at] + content[at + rng.choice((1, 8, 100)) :]


def _repeat(rng: random.Random, content: bytes, at: int) -> bytes:
    return content[: at + rng.choice((1, 8, 1000))] + content[at:]


def _insert(rng: random.Random, content: bytes, at: int) -> bytes:
    return (
        content[:at] + rng.choice((b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b'"', b"\\", b"{", b"]")) + content[at:]
    )


_OF_BYTES: tuple[Callable[[random.Random, bytes, int], bytes], ...] = (
    _flip, _flip, _cut, _set_field, _set_field, _leave_out, _repeat, _insert,
)  # fmt: skip


def mutate_json(rng: random.Random, content: bytes) -> bytes:
    """Return a damaged copy of JSON text."""
    if rng.random() < 0.1:
        return mutate_bytes(rng, content)
    return write_tree(mutate_tree(rng, json.loads(content)))


def mutate_yaml(rng: random.Random, value: Any) -> bytes:
    """Return YAML text of a damaged copy of a tree."""
    text = write_tree(mutate_tree(rng, value, len(_ALL_RAW)), spaced=True)
    return mutate_bytes(rng, text) if rng.random() < 0.1 else text


def mutate_tree(rng: random.Random, tree: Any, raw: int = len(NUMBERS + NESTED)) -> Any:
    """Return a damaged copy of a value of JSON, with the first `raw` of the texts in it; `write_tree` writes it."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        places = list(_places(tree))
        if not places:
            return _other(rng, tree, raw)
        holder, key = rng.choice(places)
        _change(rng, holder, key, raw)
    return _other(rng, tree, raw) if rng.random() < 0.02 else tree


def _places(tree: Any, depth: int = 0) -> Any:
    """Yield holders and keys of values, those near the root oftener than their number; long lists by some entries."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items)[:40]:
        yield from [(tree, key)] * max(1, 6 - 2 * depth)
        yield from _places(value, depth + 1)


def _change(rng: random.Random, holder: Any, key: Any, raw: int) -> None:
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[DUPLICATE + key] = _other(rng, holder[key], raw)
    elif kind == 2:
        holder[key] = rng.choice(([holder[key]], {key: holder[key]}, {"a": holder}, [holder[key]] * 1000))
    elif kind == 3 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder.pop(key)
    elif kind == 4 and isinstance(holder, dict):
        other = rng.choice(list(holder))
        holder[key], holder[other] = holder[other], holder[key]
    else:
        holder[key] = _other(rng, holder[key], raw)
    if kind == 2 and isinstance(holder[key], dict) and holder[key].get("a") is holder:
        holder[key] = {"a": {name: value for name, value in holder.items() if name != key}
                       if isinstance(holder, dict) else []}  # fmt: skip


def _other(rng: random.Random, value: Any, raw: int) -> Any:
    """Return a value that is not the one that stood there, most often of another type."""
    plain: tuple[Any, ...] = (
        None,
        True,
        False,
        0,
        -1,
        1.5,
        "",
        "text",
        [],
        {},
        [None],
        [[]],
        {"": None},
        ["a", 1, {}],
        {"a": {"b": []}},
    )
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind in (1, 2) and raw:
        return RAW + str(rng.randrange(raw))
    if kind == 3 and type(value) is int:
        return rng.choice(EXTREMES) * rng.choice((1, -1))
    return json.loads(json.dumps(rng.choice(plain)))


def write_tree(tree: Any, *, spaced: bool = False) -> bytes:
    """Return the text of a tree; half a character becomes bytes that are no UTF-8."""
    separators = (", ", ": ") if spaced else (",", ":")
    text = json.dumps(tree, ensure_ascii=False, separators=separators).replace(f'"{DUPLICATE}', '"')
    whole = re.sub(rf'"{RAW}(\d+)"', lambda match: _ALL_RAW[int(match[1])], text)
    return whole.encode("utf-8", "surrogatepass")
