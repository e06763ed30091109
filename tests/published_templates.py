"""Chat templates in the manner of those that well known models were published with, one a file in `templates/`.

Control tokens, constructs and logic are theirs, since it is those that a renderer can get wrong; sentences are ours.
"""

from pathlib import Path

TEMPLATES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}
