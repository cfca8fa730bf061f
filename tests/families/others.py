"""Recurrent nets, agents, graphs, generators and other networks, as public codes write them."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp


class LSTMTagger(nn.Module):
    """An LSTM in both directions over embedded words; a GRU on top."""

    vocab_size: int = 17

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(self.vocab_size, 32)(tokens)
        x = nn.Bidirectional(nn.RNN(nn.OptimizedLSTMCell(32)), nn.RNN(nn.OptimizedLSTMCell(32)))(x)
        x = nn.RNN(nn.GRUCell(64))(x)
        return nn.Dense(5, name="head")(x)


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates; the sum of all skips goes to the head."""

    residual_channels: int = 32
    skip_channels: int = 32
    quantization: int = 17

    @nn.compact
    def __call__(self, tokens):
        x = nn.Dense(self.residual_channels)(jax.nn.one_hot(tokens, self.quantization))
        skips = []
        for dilation in (1, 2, 4):
            conv = nn.Conv(
                2 * self.residual_channels, (2,), kernel_dilation=dilation, padding="CAUSAL"
            )
            gate, filters = jnp.split(conv(x), 2, axis=-1)
            y = nn.tanh(filters) * nn.sigmoid(gate)
            skips.append(nn.Dense(self.skip_channels)(y))
            x = x + nn.Dense(self.residual_channels)(y)
        x = nn.relu(nn.Dense(self.skip_channels)(nn.relu(sum(skips))))
        return nn.Dense(self.quantization)(x)


class TCN(nn.Module):
    """Temporal convolutions with weight norm."""

    channels: Sequence[int] = (32, 32)

    @nn.compact
    def __call__(self, x):
        for i, channels in enumerate(self.channels):
            y = x
            for _ in range(2):
                conv = nn.Conv(channels, (3,), kernel_dilation=2**i, padding="CAUSAL")
                y = nn.relu(nn.WeightNorm(conv)(y))
            x = nn.relu(y + (x if x.shape == y.shape else nn.Dense(channels)(x)))
        return nn.Dense(5)(x[:, -1])


class TextCNN(nn.Module):
    """Convolutions of several lengths over words, the maximum over time."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(17, 32)(tokens)
        y = [nn.relu(nn.Conv(16, (size,))(x)).max(axis=1) for size in (2, 3, 4)]
        return nn.Dense(2, name="head")(jnp.concatenate(y, axis=-1))


class LRU(nn.Module):
    """Linear recurrent units: a diagonal state of its own for each channel, by a parallel scan."""

    width: int = 32

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(x)
        for i in range(2):
            u = nn.LayerNorm()(x)
            decay = self.param(f"nu_{i}", nn.initializers.uniform(1.0), (self.width,))
            decay = jnp.exp(-jnp.exp(decay))
            a = jnp.broadcast_to(decay, u.shape)

            def combine(left, right):
                return left[0] * right[0], right[0] * left[1] + right[1]

            _, h = jax.lax.associative_scan(combine, (a, jnp.sqrt(1 - decay**2) * u), axis=1)
            gate = nn.sigmoid(nn.Dense(self.width)(h))
            x = x + nn.gelu(h) * gate
        return nn.Dense(5)(x.mean(axis=1))


class Mamba(nn.Module):
    """Selective state space: the projections to B and C, and thus the state, are shared or grouped.

    With one group all channels share B and C, as in Mamba; Mamba-2 has several groups.
    """

    width: int = 32
    state: int = 4
    groups: int = 0

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(x)
        u = nn.silu(nn.Conv(self.width, (3,), feature_group_count=self.width, padding="CAUSAL")(x))
        groups = self.groups or 1
        shape = (groups, 2 * self.state) if self.groups else 2 * self.state
        bc = nn.DenseGeneral(shape, use_bias=False, name="x_proj")(u)
        b, c = jnp.split(bc.reshape(*x.shape[:2], groups, 2 * self.state), 2, axis=-1)
        dt = nn.softplus(nn.Dense(self.width, name="dt_proj")(u)).reshape(*b.shape[:3], -1)
        u = u.reshape(dt.shape)
        init = nn.initializers.uniform(1.0)
        a = -jnp.exp(self.param("A_log", init, (groups, self.width // groups, self.state)))

        def step(h, inputs):
            u, dt, b, c = inputs
            h = jnp.exp(dt[..., None] * a) * h + (dt * u)[..., None] * b[..., None, :]
            return h, jnp.einsum("bgds,bgs->bgd", h, c)

        inputs = jax.tree.map(lambda v: v.swapaxes(0, 1), (u, dt, b, c))
        _, y = jax.lax.scan(step, jnp.zeros((x.shape[0], *a.shape)), inputs)
        y = y.swapaxes(0, 1).reshape(x.shape) + x
        return nn.Dense(5, name="head")(y[:, -1])


class ActorCritic(nn.Module):
    """PPO on vectors: two networks of two layers, and a scale for each action."""

    action_dim: int = 3
    activation: str = "tanh"

    @nn.compact
    def __call__(self, x):
        activation = nn.relu if self.activation == "relu" else nn.tanh
        orthogonal = nn.initializers.orthogonal
        actor = activation(nn.Dense(64, kernel_init=orthogonal(2**0.5))(x))
        actor = activation(nn.Dense(64, kernel_init=orthogonal(2**0.5))(actor))
        mean = nn.Dense(self.action_dim, kernel_init=orthogonal(0.01))(actor)
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        critic = activation(nn.Dense(64, kernel_init=orthogonal(2**0.5))(x))
        critic = activation(nn.Dense(64, kernel_init=orthogonal(2**0.5))(critic))
        value = nn.Dense(1, kernel_init=orthogonal(1.0))(critic)
        return mean, log_std, jnp.squeeze(value, axis=-1)


class SACActor(nn.Module):
    """A Gaussian policy whose deviation is clipped, or left to the caller."""

    action_dim: int = 3
    clip: bool = True

    @nn.compact
    def __call__(self, obs):
        x = nn.relu(nn.Dense(64)(obs))
        x = nn.relu(nn.Dense(64)(x))
        mean, log_std = nn.Dense(self.action_dim)(x), nn.Dense(self.action_dim)(x)
        return mean, jnp.clip(log_std, -20, 2) if self.clip else log_std


class DuelingDQN(nn.Module):
    """Convolutions over frames of 8 bits; value and advantages."""

    action_dim: int = 3

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32) / 255.0
        x = nn.relu(nn.Conv(32, (4, 4), (2, 2), padding="VALID")(x))
        x = nn.relu(nn.Conv(64, (3, 3), (1, 1), padding="VALID")(x))
        x = x.reshape((x.shape[0], -1))
        value = nn.Dense(1, name="value")(nn.relu(nn.Dense(64)(x)))
        advantage = nn.Dense(self.action_dim, name="advantage")(nn.relu(nn.Dense(64)(x)))
        return value + advantage - advantage.mean(axis=-1, keepdims=True)


class Impala(nn.Module):
    """Residual convolutions of each frame, an LSTM over time, policy and value."""

    num_actions: int = 3

    @nn.compact
    def __call__(self, inputs):
        frames = inputs["frame"].astype(jnp.float32) / 255  # (time, batch, …)
        x = frames.reshape(-1, *frames.shape[2:])
        for channels in (16, 32):
            x = nn.max_pool(nn.Conv(channels, (3, 3))(x), (3, 3), (2, 2), padding="SAME")
            for _ in range(2):
                y = nn.Conv(channels, (3, 3))(nn.relu(x))
                x = x + nn.Conv(channels, (3, 3))(nn.relu(y))
        x = nn.relu(x).reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(64)(x)).reshape(*frames.shape[:2], -1)
        action = jax.nn.one_hot(inputs["action"], self.num_actions)
        x = jnp.concatenate([x, action, inputs["reward"][..., None]], axis=-1)
        x = nn.RNN(nn.OptimizedLSTMCell(64), time_major=True)(x)
        return nn.Dense(self.num_actions, name="policy")(x), nn.Dense(1, name="value")(x)


class GCN(nn.Module):
    """Graph convolutions with symmetric normalisation by the degrees."""

    hidden: int = 32

    @nn.compact
    def __call__(self, graph):
        x, senders, receivers = graph["nodes"], graph["senders"], graph["receivers"]
        nodes = x.shape[0]
        ones = jnp.ones_like(senders, jnp.float32)
        out_degree = jax.ops.segment_sum(ones, senders, nodes) + 1
        in_degree = jax.ops.segment_sum(ones, receivers, nodes) + 1
        for _ in range(2):
            h = nn.Dense(self.hidden)(x) * jax.lax.rsqrt(out_degree)[:, None]
            h = jax.ops.segment_sum(h[senders], receivers, nodes) + h
            x = nn.relu(h * jax.lax.rsqrt(in_degree)[:, None])
        return nn.Dense(4)(x)


class GAT(nn.Module):
    """Graph attention: a softmax over each node's neighbours in every head."""

    heads: int = 4
    features: int = 8

    @nn.compact
    def __call__(self, graph):
        x, senders, receivers = graph["nodes"], graph["senders"], graph["receivers"]
        nodes = x.shape[0]
        for _ in range(2):
            h = nn.DenseGeneral((self.heads, self.features), use_bias=False)(x)
            init = nn.initializers.lecun_normal()
            a = self.param(f"a_{_}", init, (2, self.heads, self.features))
            scores = (h * a[0]).sum(-1)[senders] + (h * a[1]).sum(-1)[receivers]
            scores = nn.leaky_relu(scores, 0.2)
            scores = scores - jax.ops.segment_max(scores, receivers, nodes)[receivers]
            weights = jnp.exp(scores)
            total = jax.ops.segment_sum(weights, receivers, nodes)[receivers]
            weights = weights / (total + 1e-9)
            h = jax.ops.segment_sum(weights[..., None] * h[senders], receivers, nodes)
            x = nn.elu(h).reshape(nodes, -1)
        return nn.Dense(4)(x)


class MessagePassing(nn.Module):
    """Interaction network: messages of edges, updates of nodes, a result for the graph."""

    latent: int = 32

    @nn.compact
    def __call__(self, graph):
        senders, receivers = graph["senders"], graph["receivers"]

        def mlp(*parts):
            x = jnp.concatenate(parts, axis=-1)
            return nn.LayerNorm()(nn.Dense(self.latent)(nn.relu(nn.Dense(self.latent)(x))))

        nodes, edges = mlp(graph["nodes"]), mlp(graph["edges"])
        for _ in range(2):
            edges = edges + mlp(edges, nodes[senders], nodes[receivers])
            received = jax.ops.segment_sum(edges, receivers, nodes.shape[0])
            nodes = nodes + mlp(nodes, received)
        return nn.Dense(1)(nodes.sum(0))


class PointNet(nn.Module):
    """The same layers for each point, and the maximum over points."""

    @nn.compact
    def __call__(self, points):
        x = points
        for features in (32, 64):
            x = nn.Dense(features)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = x.max(axis=1)
        x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(5, name="head")(x)


class Autoencoder(nn.Module):
    """Convolutions down to a vector and up again; both sizes of the reshape are written down."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        shape = x.shape
        x = nn.Dense(16, name="latent")(x.reshape(x.shape[0], -1))
        x = nn.relu(nn.Dense(shape[1] * shape[2] * shape[3])(x)).reshape(shape)
        x = nn.relu(nn.ConvTranspose(16, (3, 3), strides=(2, 2))(x))
        return nn.ConvTranspose(3, (3, 3), strides=(2, 2), name="pixels")(x)


class VAE(nn.Module):
    """Mean and deviation of the latents; a sample of them in training is decoded."""

    hidden: int = 64
    latents: int = 16

    @nn.compact
    def __call__(self, x, train=False):
        shape, x = x.shape, x.reshape(x.shape[0], -1)
        h = nn.relu(nn.Dense(self.hidden)(x))
        mean, logvar = nn.Dense(self.latents)(h), nn.Dense(self.latents)(h)
        z = mean
        if train:
            z += jnp.exp(logvar / 2) * jax.random.normal(self.make_rng("sample"), mean.shape)
        h = nn.relu(nn.Dense(self.hidden)(z))
        return nn.Dense(x.shape[-1])(h).reshape(shape)


class Generator(nn.Module):
    """DCGAN: a vector to a small image, and up; of the reshape the batch is −1, or the channels."""

    follow: bool = False

    @nn.compact
    def __call__(self, z):
        x = nn.Dense(4 * 4 * 64)(z)
        x = x.reshape(x.shape[0], 4, 4, -1) if self.follow else x.reshape(-1, 4, 4, 64)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.ConvTranspose(32, (4, 4), strides=(2, 2), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        return nn.ConvTranspose(3, (4, 4), strides=(2, 2), name="pixels")(x)


class Denoiser(nn.Module):
    """U-Net of diffusion models: time, group norms, attention.

    A block normalises behind its convolutions, or before them, as DDPM does.
    """

    channels: Sequence[int] = (32, 64)
    norm_first: bool = False

    @nn.compact
    def __call__(self, batch):
        x, t = batch["x"], batch["t"]
        half = self.channels[0] // 2
        angles = t[:, None] * jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / (half - 1))
        time = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        time = nn.Dense(4 * self.channels[0])(nn.swish(nn.Dense(4 * self.channels[0])(time)))

        def layer(x, features):
            norm, conv = nn.GroupNorm(num_groups=8), nn.Conv(features, (3, 3))
            return conv(nn.swish(norm(x))) if self.norm_first else nn.swish(norm(conv(x)))

        def block(x, features):
            y = layer(x, features) + nn.Dense(features)(nn.swish(time))[:, None, None]
            y = layer(y, features)
            return y + (x if x.shape == y.shape else nn.Conv(features, (1, 1))(x))

        x = nn.Conv(self.channels[0], (3, 3))(x)
        skips = [x]
        for features in self.channels:
            x = block(x, features)
            skips.append(x)
            x = nn.Conv(features, (3, 3), strides=2)(x)
        n, h, w, c = x.shape
        y = nn.GroupNorm(num_groups=8)(x).reshape(n, h * w, c)
        x = block(x + nn.MultiHeadDotProductAttention(num_heads=4)(y).reshape(x.shape), c)
        for features in reversed(self.channels):
            x = jax.image.resize(x, (n, 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), "nearest")
            x = block(jnp.concatenate([x, skips.pop()], axis=-1), features)
        x = nn.swish(nn.GroupNorm(num_groups=8)(x))
        return nn.Conv(3, (3, 3), name="noise")(x)


class RealNVP(nn.Module):
    """Couplings: half of the entries are scaled and shifted by networks of the others."""

    hidden: int = 32

    @nn.compact
    def __call__(self, x):
        log_det = 0.0
        for _ in range(2):
            a, b = jnp.split(x, 2, axis=-1)
            h = nn.relu(nn.Dense(self.hidden)(a))
            shift, log_scale = nn.Dense(b.shape[-1])(h), nn.tanh(nn.Dense(b.shape[-1])(h))
            x = jnp.concatenate([b * jnp.exp(log_scale) + shift, a], axis=-1)
            log_det += log_scale.sum(-1)
        return x, log_det


class VQVAE(nn.Module):
    """The nearest entry of a table takes each place's vector; with groups, that of each group."""

    width: int = 32
    groups: int = 0

    @nn.compact
    def __call__(self, x):
        z = nn.Conv(self.width, (3, 3), strides=2)(x)
        groups = self.groups or 1
        table = self.param("codebook", nn.initializers.normal(), (groups, 8, self.width // groups))
        vectors = z.reshape(*z.shape[:3], groups, 1, -1)
        index = jnp.square(vectors - table).sum(-1).argmin(-1)
        codes = jnp.einsum("nhwge,ged->nhwgd", jax.nn.one_hot(index, 8), table).reshape(z.shape)
        z = z + jax.lax.stop_gradient(codes - z)
        return nn.ConvTranspose(3, (3, 3), strides=(2, 2), name="pixels")(z)


class NeRF(nn.Module):
    """Sines and cosines of the position; the input again halfway; density and colour."""

    @nn.compact
    def __call__(self, x):
        scaled = x[..., None, :] * 2.0 ** jnp.arange(4)[:, None]
        features = jnp.concatenate([jnp.sin(scaled), jnp.cos(scaled)], -1)
        features = jnp.concatenate([x, features.reshape(*x.shape[:-1], -1)], -1)
        h = features
        for i in range(4):
            h = nn.relu(nn.Dense(64)(h))
            if i == 1:
                h = jnp.concatenate([h, features], axis=-1)
        density = nn.Dense(1, name="density")(h)
        colour = nn.Dense(3, name="colour")(nn.relu(nn.Dense(32)(h)))
        return density, colour


class SpectralConv(nn.Module):
    width: int
    modes: int

    @nn.compact
    def __call__(self, x):
        spectrum = jnp.fft.rfft(x, axis=1)[:, : self.modes]
        shape, init = (x.shape[-1], self.width, self.modes), nn.initializers.normal(0.1)
        weights = self.param("real", init, shape) + 1j * self.param("imag", init, shape)
        spectrum = jnp.einsum("bmi,iom->bmo", spectrum, weights)
        spectrum = jnp.pad(spectrum, ((0, 0), (0, x.shape[1] // 2 + 1 - self.modes), (0, 0)))
        return jnp.fft.irfft(spectrum, n=x.shape[1], axis=1)


class FNO(nn.Module):
    """Fourier neural operator: products with complex kernels at low frequencies."""

    width: int = 32
    modes: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(x)
        for _ in range(2):
            x = nn.gelu(SpectralConv(self.width, self.modes)(x) + nn.Dense(self.width)(x))
        return nn.Dense(1)(nn.gelu(nn.Dense(2 * self.width)(x)))


class DeepONet(nn.Module):
    """A network of the function times one of the place, summed, or merged by a dense layer."""

    hidden: int = 64
    merge: Callable = lambda y: y.sum(-1)

    @nn.compact
    def __call__(self, batch):
        branch = nn.Dense(self.hidden)(nn.tanh(nn.Dense(self.hidden)(batch["function"])))
        trunk = nn.tanh(nn.Dense(self.hidden)(nn.tanh(nn.Dense(self.hidden)(batch["place"]))))
        return self.merge(branch * trunk)


class WideAndDeep(nn.Module):
    """Recommender: embeddings of categories beside numbers, deep layers, and a linear term."""

    @nn.compact
    def __call__(self, batch):
        embedded = nn.Embed(17, 16)(batch["categories"]).reshape(batch["numbers"].shape[0], -1)
        deep = jnp.concatenate([embedded, batch["numbers"]], axis=-1)
        for features in (64, 32):
            deep = nn.relu(nn.Dense(features)(deep))
        wide = nn.Dense(1, name="wide")(batch["numbers"])
        return nn.Dense(1, name="deep")(deep) + wide
