"""Redaction: no password and no token in text that people, logs and artifacts get to see.

Vendors write the address that they connect to into their errors, and a database's has its password in it. So every
error of ours, every reason of an outcome and every line of the command line goes through here.
"""

import re

# `@` is also how sources and models name a revision or an alias.
_USER = re.compile(r"\b(?!(?:hf|models|runs|pypi|datasets):)([a-z][a-z0-9+.-]*://)[^\s/'\"]*@", re.IGNORECASE)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def redacted(text: str) -> str:
    """Return the text with `***` for user and password of every address, and for tokens of the Hugging Face Hub."""
    return _TOKEN.sub("hf_***", _USER.sub(r"\1***@", text))
