"""Accuracy and cost of logits, in double precision on the host."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Score(NamedTuple):
    """How well logits classify a split.

    Attributes:
      accuracy: the fraction of examples classified correctly; ties go to the first class.
      cost: the mean cross entropy in nats, whatever the training loss was.
    """

    accuracy: float
    cost: float


def score(logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]) -> Score:
    """Return the accuracy and the mean cross entropy, `mean(log Σ_c exp z_c − z_y)`.

    >>> score(np.array([[0.0, 0.0], [0.0, 1e4]]), np.array([0, 1]))
    Score(accuracy=1.0, cost=0.34657359027997264)
    """
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    true = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
    costs = np.log(np.exp(shifted).sum(axis=1)) - true
    return Score(float(np.mean(logits.argmax(axis=1) == labels)), float(np.mean(costs)))
