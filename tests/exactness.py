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


def relative_error(network, subnets, x, fields=("width",), **kwargs):
    """Return the largest relative error of the results, and the random variables."""
    stacked = dcjax.init(network, subnets, jax.random.key(0), x, fields=fields, **kwargs)
    stacked = random_variables(stacked)
    subnet = jax.jit(dcjax.decompose(network, subnets, fields).apply)
    separate = [jax.tree.leaves(subnet(stacked[k], x, **kwargs)) for k in range(subnets)]
    composed = jax.jit(network.apply)(dcjax.compose(stacked), x, **kwargs)
    errors = []
    for together, *apart in zip(jax.tree.leaves(composed), *separate, strict=True):
        mean = np.mean(np.asarray(apart, np.float64), 0)
        assert together.shape == mean.shape
        assert np.abs(mean).max() > 0
        errors.append(np.abs(np.asarray(together, np.float64) - mean).max() / np.abs(mean).max())
    return max(errors), stacked
