"""Sampling: from logits to the next token, by OpenAI's parameters.

    logits -> + bias - penalties -> grammar's mask -> likeliest | / temperature -> top_k -> top_p -> min_p -> drawn

The order of top_k and top_p is that of ONNX Runtime GenAI, whose defaults a package has; the random numbers are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]

MOST_LIKELY = 2048  # tokens that are sorted first: nearly always they hold `top_p`
SEEDS = 2**63


@dataclass(frozen=True)
class SamplingRule:
    """How the tokens of one answer are chosen.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is all.
        seed: None is another one every time.
        bias: token id -> what is added to its logit.
        logprobs: how many of the likeliest tokens are given with each; None: nothing is.
        grammar: what the answer has to match, as llguidance writes it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    grammar: str | None = None


@dataclass(frozen=True)
class Chosen:
    """A token, with the natural logarithms of the model's own probabilities where they were asked for."""

    token: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one answer."""

    def __init__(self, rule: SamplingRule) -> None:
        self._rule = rule
        self._random = np.random.default_rng(rule.seed if rule.seed is None else rule.seed % SEEDS)
        self._counts: dict[int, int] = {}
        self._changes = bool(rule.bias or rule.presence_penalty or rule.frequency_penalty)

    def choose(self, logits: Logits, mask: npt.NDArray[np.bool_] | None = None) -> Chosen:
        """Return the next token.

        Args:
            logits: float32 `[vocabulary]`; they are not changed.
            mask: bool `[vocabulary]`, the tokens that may follow; None: all.
        """
        token = self._token(self._changed(logits, mask))
        if self._changes:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._rule.logprobs is None:
            return Chosen(token)
        logprobs = log_softmax(logits)
        likeliest = _highest(logprobs, self._rule.logprobs)
        return Chosen(token, float(logprobs[token]), tuple((int(each), float(logprobs[each])) for each in likeliest))

    def _changed(self, logits: Logits, mask: npt.NDArray[np.bool_] | None) -> Logits:
        rule = self._rule
        if not self._changes and mask is None:
            return logits
        changed = logits.copy()
        for token, bias in rule.bias.items():
            changed[token] += bias
        for token, count in self._counts.items():
            changed[token] -= rule.presence_penalty + rule.frequency_penalty * count
        if mask is not None:
            changed[~mask] = -np.inf
        return changed

    def _token(self, logits: Logits) -> int:
        rule = self._rule
        if rule.temperature <= 0:
            return int(logits.argmax())
        if rule.top_k:
            tokens = _highest(logits, rule.top_k)
            return int(tokens[self._drawn(_softmax(logits[tokens] / rule.temperature))])
        probabilities = _softmax(logits / rule.temperature)
        if rule.top_p >= 1 and rule.min_p <= 0:
            return self._drawn(probabilities)
        tokens = _highest(probabilities, MOST_LIKELY)
        if probabilities[tokens].sum() < rule.top_p:
            tokens = _highest(probabilities, len(probabilities))
        return int(tokens[self._drawn(probabilities[tokens])])

    def _drawn(self, probabilities: npt.NDArray[np.float64]) -> int:
        """Return a place; the probabilities fall, unless every one of them counts."""
        rule = self._rule
        if rule.min_p > 0:
            probabilities = probabilities[: max(1, int((probabilities >= rule.min_p * probabilities[0]).sum()))]
        sums = np.cumsum(probabilities)
        if rule.top_p < 1:
            sums = sums[: int(np.searchsorted(sums, rule.top_p * (1 if rule.min_p <= 0 else sums[-1]))) + 1]
        return min(int(np.searchsorted(sums, self._random.random() * sums[-1], side="right")), len(sums) - 1)


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Return the natural logarithms of the probabilities, float64 `[vocabulary]`."""
    shifted = logits.astype(np.float64) - float(logits.max())
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def _softmax(logits: Logits) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = np.exp(log_softmax(logits))
    return result


def _highest(values: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.int64]:
    """Return the places of the highest values, the highest first; of equals the first."""
    count = min(count, len(values))
    if count == 0:
        return np.empty(0, np.int64)
    places = np.argpartition(-values, count - 1)[:count] if count < len(values) else np.arange(len(values))
    return places[np.lexsort((places, -values[places]))]
