"""The usual optimiser of residual networks on small images."""

import math

import jax
import optax


def sgd(
    learning_rate: float,
    steps: int,
    warmup: int = 0,
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
    final_rate: float = 0.0,
) -> optax.GradientTransformation:
    """Make Nesterov SGD with weight decay, linear warm-up and cosine decay.

    With rate η at step t, gradient g, weights w, decay λ and momentum μ:
    `g ← g + λ w`, `m ← μ m + g`, `w ← w − η_t (g + μ m)`, where `η_t = η t / warmup` up to
    `warmup` and `η_t = ε + (η − ε) (1 + cos(π (t − warmup) / (steps − warmup))) / 2` after it.

    Only kernels, the leaves of two or more axes, decay.

    Args:
      learning_rate: η, the peak.
      steps: all steps, including warm-up.
      warmup: steps of warm-up.
      weight_decay: λ.
      momentum: μ.
      final_rate: ε, the rate at the end; η keeps the rate constant after warm-up.

    Returns:
      An optax transformation.

    Raises:
      ValueError: not 0 ≤ `warmup` < `steps`, 0 ≤ ε ≤ η, 0 ≤ λ and 0 ≤ μ < 1, or an argument is not
        a finite number.

    >>> optimizer = sgd(0.1, steps=100, warmup=10)
    >>> len(optimizer.init({"kernel": jax.numpy.ones((3, 3))}))
    2

    References:
      T. He et al., *Bag of tricks for image classification with convolutional neural networks*,
      CVPR 2019 (warm-up, cosine, no decay of biases).
    """
    try:
        rates = 0 <= final_rate <= learning_rate < math.inf
        fits = rates and 0 <= warmup < steps < math.inf
        fits = fits and 0 <= weight_decay < math.inf and 0 <= momentum < 1
    except TypeError:  # not numbers
        fits = False
    if not fits:
        raise ValueError(
            "expected numbers with 0 <= warmup < steps, 0 <= final_rate <= learning_rate, "
            "0 <= weight_decay and 0 <= momentum < 1, all finite, got "
            f"{warmup=}, {steps=}, {final_rate=}, {learning_rate=}, {weight_decay=}, {momentum=}"
        )
    schedule = optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else learning_rate,
        peak_value=learning_rate,
        warmup_steps=warmup,
        decay_steps=steps,
        end_value=final_rate,
    )
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_kernels),
        optax.sgd(schedule, momentum=momentum, nesterov=True),
    )


def _kernels(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
