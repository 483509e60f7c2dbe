"""What quantizing cost, in figures, and whether that is too much. Pure: knows nothing of models, text or files.

Two records of one text are compared, the reference's (unquantized weights) and the candidate's. Perplexity and
divergence look at every position of the text, given the text before it; agreement looks at what each would say.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_plane.weights.errors import WeightsError

PERPLEXITY_LIMITS: dict[str, float] = {"int8": 1.02, "int4": 1.06, "fp8": 1.02}
"""The largest perplexity that is accepted, as a multiple of the reference's."""
_LEAST = 1e-12
"""Probabilities below it are rounding errors of what is left beside the most likely tokens."""


class QualityError(WeightsError):
    """Quantized weights that are too far from the unquantized ones."""


@dataclass(frozen=True, slots=True)
class Position:
    """One position of a text: the log-probability of its token, and of the most likely tokens by id (natural logs)."""

    token_id: int
    logprob: float
    top: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Record:
    """What one set of weights makes of the text: each prompt's positions after its first, and its greedy answers."""

    prompts: Sequence[Sequence[Position]]
    answers: Sequence[Sequence[int]]


def compare(reference: Record, candidate: Record) -> dict[str, float]:
    """The figures that stay with an artifact. QualityError if the candidate's probabilities are not numbers.

    `perplexity_ratio`: exp of the mean by which a token's negative log-probability rose. `mean_kl`: mean over
    positions of KL(reference || candidate) in nats, see `divergence`. `greedy_agreement`: mean over prompts of the
    share of the answer's tokens before the first that differs. `perplexity` is the candidate's own.
    """
    pairs = [
        (ours, theirs)
        for one, other in zip(reference.prompts, candidate.prompts, strict=True)
        for ours, theirs in zip(one, other, strict=True)
    ]
    if not pairs or not all(math.isfinite(theirs.logprob) for _, theirs in pairs):
        raise QualityError("the quantized weights give probabilities that are not numbers; choose another quantization")
    losses = [-theirs.logprob for _, theirs in pairs]
    rises = [ours.logprob - theirs.logprob for ours, theirs in pairs]
    equal = [_common(*answers) for answers in zip(reference.answers, candidate.answers, strict=True)]
    figures = {
        "perplexity_ratio": math.exp(math.fsum(rises) / len(pairs)),
        "mean_kl": math.fsum(divergence(ours, theirs) for ours, theirs in pairs) / len(pairs),
        "greedy_agreement": math.fsum(equal) / len(equal),
        "perplexity": math.exp(math.fsum(losses) / len(pairs)),
        "reference_perplexity": math.exp((math.fsum(losses) - math.fsum(rises)) / len(pairs)),
    }
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


def divergence(reference: Position, candidate: Position) -> float:
    """KL(reference || candidate) in nats over the tokens that both name and one bucket for all others.

    Merging tokens into a bucket can only lower a divergence: this is a lower bound of the whole vocabulary's.
    """
    p, q = ({position.token_id: position.logprob, **position.top} for position in (reference, candidate))
    shared = p.keys() & q.keys()
    known = math.fsum(math.exp(p[token]) * (p[token] - q[token]) for token in shared)
    rest_p, rest_q = (max(_LEAST, 1 - math.fsum(math.exp(side[token]) for token in shared)) for side in (p, q))
    return max(0.0, known + rest_p * math.log(rest_p / rest_q))


def _common(one: Sequence[int], other: Sequence[int]) -> float:
    """The share of tokens before the first that differs; 1.0 for two empty answers."""
    length = max(len(one), len(other))
    for at, (ours, theirs) in enumerate(zip(one, other, strict=False)):
        if ours != theirs:
            return at / length
    return min(len(one), len(other)) / length if length else 1.0


def refusal(quantization: str, figures: Mapping[str, float]) -> str | None:
    """Why weights with these figures are not to be served, as a sentence; None if they are within their limit."""
    limit = PERPLEXITY_LIMITS[quantization]
    if figures["perplexity_ratio"] <= limit:
        return None
    return (
        f"{quantization} raises the perplexity by {figures['perplexity_ratio'] - 1:.1%}, more than the "
        f"{limit - 1:.0%} allowed (mean KL divergence {figures['mean_kl']:.4f} nats, greedy agreement "
        f"{figures['greedy_agreement']:.0%}); choose a wider quantization, or --force to accept it"
    )
