"""General text: how well a model still knows what it was not trained on, so that forgetting is seen."""

from pathlib import Path

from slmpack.checkpoint.windows import LOG_PROBABILITIES_FILE, REFERENCE_FILE
from slmpack.prove.quality.reference import Reference, source_reference
from slmpack.prove.quality.text import read_text
from slmpack.records import Snapshot


def general_perplexity(snapshot: Snapshot, workspace: Path) -> float:
    """Return the perplexity of the built-in quality text; the model's log-probabilities are stored, see `reference`.

    Raises:
        QualityError: the model cannot be run, or its logits are not finite.
        WorkspaceError: the snapshot is not there any more, or the workspace is full.
    """
    import numpy as np

    folder = source_reference(snapshot, read_text(None), workspace)
    reference = Reference.model_validate_json((folder / REFERENCE_FILE).read_text())
    log_probabilities = np.load(folder / LOG_PROBABILITIES_FILE, mmap_mode="r")
    following = [token for window in reference.windows for token in window[1:]]
    found = log_probabilities[np.arange(len(following)), following].astype(np.float64)
    return float(np.exp(-found.mean()))
