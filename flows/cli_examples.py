"""Examples: what `--help` shows below the options of each command; tests read each of them with the real parser."""

import argparse
import textwrap
from typing import Any

MODEL = "models:/smollm2-135m-instruct@cpu-int4"

EXAMPLES: dict[str, tuple[str, ...]] = {
    "package": (
        "slmpack package hf://microsoft/Phi-3-mini-4k-instruct --target cpu-int4",
        "slmpack package ./my-checkpoint --target cpu-int4 --target transformers --name my-model --json",
        "slmpack package model.gguf --recipe balanced",
    ),
    "verify": (f"slmpack verify {MODEL}",),
    "rollback": ("slmpack rollback our-phi --target cpu-int4",),
    "sbom": (f"slmpack sbom {MODEL} > smollm2.cdx.json",),
    "chat": (
        f"slmpack chat {MODEL} 'What is the capital of France?'",
        f"git diff | slmpack chat {MODEL} - --system 'Review this.'",
        f"slmpack chat {MODEL}                       # a conversation",
    ),
    "serve": (
        f"slmpack serve {MODEL}",
        f"slmpack serve {MODEL} --host 0.0.0.0 --api-key-file keys",
    ),
    "retrain": (
        "slmpack retrain hf://microsoft/Phi-3-mini-4k-instruct --data chats.jsonl --name our-phi --target cpu-int4",
    ),
    "promote": ("slmpack promote our-phi --from cpu-int4 --to production",),
    "sign": ("slmpack sign models:/our-phi@production --signing-key key.pem",),
    "keys": ("slmpack keys new key.pem", "slmpack keys show key.pem > key.pub"),
    "targets": ("slmpack targets", "slmpack targets --json"),
    "list": ("slmpack list", "slmpack list our-phi --json"),
    "show": ("slmpack show our-phi@cpu-int4", "slmpack show models:/our-phi/3 --json"),
    "open": ("slmpack open our-phi@cpu-int4",),
    "diff": ("slmpack diff our-phi@production our-phi@cpu-int4", "slmpack diff our-phi/2 our-phi/3 --json"),
}


def shown_below(*lines: str) -> dict[str, Any]:
    """Return what a parser is made with, so that its help ends in these commands as they are typed."""
    shown = textwrap.indent("\n".join(lines), "  ")
    return {"epilog": f"examples:\n{shown}", "formatter_class": argparse.RawDescriptionHelpFormatter}
