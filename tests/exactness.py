"""The composed network against K separate ones, with every variable random."""

import jax
import jax.numpy as jnp
import numpy as np

import dcjax


def random_variables(stacked, seed=0):
    """Variables that no initialiser makes; variances are positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        fan_in = max(1, int(np.prod(leaf.shape[1:-1])))
        values = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        positive = jax.tree_util.keystr(path).endswith("['var']")
        return jnp.asarray(1 + values**2 if positive else values, leaf.dtype)

    tree = jax.tree_util.tree_map_with_path(draw, stacked.tree)
    return dcjax.Stacked(tree, stacked.layout)


def relative_error(network, subnets, x, fields=("width",), calls=(), **kwargs):
    """Return the largest relative error of the calls' results, and the random variables."""
    key = jax.random.key(0)
    stacked = dcjax.init(network, subnets, key, x, fields=fields, calls=calls, **kwargs)
    stacked = random_variables(stacked)

    def results(network):
        def run(variables):
            each = [network.apply(variables, x, **kwargs, **call) for call in calls]
            each = [y[0] if "mutable" in call else y for y, call in zip(each, calls, strict=True)]
            return jax.tree.leaves([network.apply(variables, x, **kwargs), each])

        return jax.jit(run)

    subnet = results(dcjax.decompose(network, subnets, fields))
    separate = [subnet(stacked[k]) for k in range(subnets)]
    composed = results(network)(dcjax.compose(stacked))
    errors = []
    for together, *apart in zip(composed, *separate, strict=True):
        mean = np.mean(np.asarray(apart, np.float64), 0)
        assert together.shape == mean.shape
        assert np.abs(mean).max() > 0
        errors.append(np.abs(np.asarray(together, np.float64) - mean).max() / np.abs(mean).max())
    return max(errors), stacked
