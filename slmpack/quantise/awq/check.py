"""Fold check: the source says the same with its weights folded as without.

Both run in float32 on a few tokens, a module at a time. Every module has its weights folded for as long as it runs.
What remains is rounding, which bounds allow for; a map that is wrong in one pair is off by much more. Here are the
largest difference of a logit, as a part of the logits' standard deviation, and the mean KL:

    scales between 1/8 and 8, all nine architectures, 2 random layers    1.3e-6 to 7.6e-6, at most 4e-12
    SmolLM2-135M, 30 layers, its chosen scales                           9.4e-6, 1.1e-11
    the bounds                                                           1e-3, 1e-6
    a wrong map, 2 random layers                                         more than 0.1, more than 1e-4
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slmpack.checkpoint.forward import load_source, logits_of, tensor_names

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from slmpack.quantise.awq.channel_pairs import Fold

LARGEST_DIFFERENCE = 1e-3  # of a logit, as a part of the logits' standard deviation
LARGEST_KL = 1e-6  # mean over positions, in nats


@dataclass(frozen=True)
class Difference:
    """What folding changed.

    Attributes:
        largest: of a logit, as a part of all logits' standard deviation.
        mean_kl: from the source to the folded source, in nats a token.
        unused: a tensor that the fold names and no module of the model has, else None.
    """

    largest: float
    mean_kl: float
    unused: str | None = None

    @property
    def reason(self) -> str | None:
        """Why the fold is not to be used, None if it is exact but for rounding."""
        if self.unused:
            return f"{self.unused} is none of the model's weights"
        if self.largest <= LARGEST_DIFFERENCE and self.mean_kl <= LARGEST_KL:  # not where one is NaN
            return None
        return (
            f"folded logits differ by {self.largest:.1e} of their spread, mean KL {self.mean_kl:.1e}, where rounding "
            f"gives less than {LARGEST_DIFFERENCE:.0e} and {LARGEST_KL:.0e}"
        )


def compare_folded(
    checkpoint: Path, dtype: str, fold: "Fold", norm_offset: float, windows: Sequence[Sequence[int]]
) -> Difference:
    """Run the source with and without its fold.

    Args:
        dtype: torch's name of the checkpoint's precision.
        norm_offset: what its norms add to their weights.
        windows: token ids.
    """
    import torch

    plain = torch.cat(list(logits_of(load_source(checkpoint, dtype), windows)))
    model = load_source(checkpoint, dtype)
    change = _Change(fold, norm_offset, tensor_names(model))
    folded = torch.cat(list(logits_of(model, windows, change=change)))
    divergence = torch.stack([_divergence(*each) for each in zip(plain, folded, strict=True)]).mean()
    largest = (plain - folded).abs_().amax() / plain.std()
    return Difference(float(largest), float(divergence), next(iter(change.unused()), None))


def _divergence(plain: "Tensor", folded: "Tensor") -> "Tensor":
    """Return the KL of one position's logits `[vocabulary]`, in nats."""
    import torch

    log_probabilities = torch.log_softmax(plain.double(), -1)
    return (log_probabilities.exp() * (log_probabilities - torch.log_softmax(folded.double(), -1))).sum()


class _Change:
    """Folds the float32 weights of modules as they are loaded; matrices are overwritten."""

    def __init__(self, fold: "Fold", norm_offset: float, names: "Mapping[Module, Mapping[str, str]]") -> None:
        self._fold, self._norm_offset, self._names = fold, norm_offset, names
        self._used: set[str] = set()

    def __call__(self, module: "Module", own: str, tensor: "Tensor") -> "Tensor":
        fold, name = self._fold, self._names.get(module, {}).get("weight", "")
        self._used.add(name)
        if own == "weight" and name in fold.norms:
            return (tensor + self._norm_offset) * fold.norms[name] - self._norm_offset
        if own == "weight" and name in fold.columns:
            tensor.mul_(fold.columns[name])
        if name in fold.rows:
            rows = fold.rows[name]
            tensor = tensor * rows if own == "bias" else tensor.mul_(rows.unsqueeze(1))
        return tensor

    def unused(self) -> list[str]:
        """Return the fold's tensors that no module had."""
        return sorted((self._fold.columns.keys() | self._fold.rows.keys() | self._fold.norms.keys()) - self._used)
