"""Networks by family, and what each takes: the rows of the table in docs/networks.md.

The networks are written as public codes write them, without regard to dcjax.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import dcjax
from experiments.markdown import table
from tests.families import convolutional as conv
from tests.families import others, transformers

K = 4


class Refused(NamedTuple):
    """A network as public codes write it that does not compose, and what its refusal says."""

    network: nn.Module
    says: tuple[str, ...]
    fields: tuple[str, ...] = ("width",)


class Row(NamedTuple):
    """A family, and what its networks take.

    Attributes:
      network: the network as public codes write it, or after an edit if that is refused; None where
        there is none that composes.
      x: the first argument of its call.
      fields: the fields that carry width; `("width",)` is the default of all functions.
      keep: the heads of `dcjax.narrowable`; None without it.
      grouped: whether it is given to `dcjax.grouped`.
      train: the argument `train`, if the network's default is that of training.
      calls: further calls.
      refused: the network before the edit.
      note: the edit, or the reason why there is none, or what to mind.
    """

    family: str
    network: nn.Module | None
    x: Any
    fields: tuple[str, ...] = ("width",)
    keep: tuple[str, ...] | None = None
    grouped: bool = False
    train: bool | None = None
    calls: tuple[dict[str, Any], ...] = ()
    refused: Refused | None = None
    note: str = ""

    def ready(self, network: Any) -> Any:
        """Return the network as it is given to dcjax."""
        if self.grouped:
            network = dcjax.grouped(network, K)
        return network if self.keep is None else dcjax.narrowable(network, keep=self.keep)

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of the network's call."""
        return {} if self.train is None else {"train": self.train}

    def takes(self) -> list[str]:
        """Return what the family takes, in words, and in code."""
        if self.network is None:
            return ["not possible", ""]
        named = {
            "own edit": self.refused is not None,
            "`fields`": self.fields != ("width",),
            "`narrow`": hasattr(self.network, "narrow"),
            "`narrowable`": self.keep is not None,
            "`grouped`": self.grouped,
            "`calls`": bool(self.calls),
        }
        code = [f"fields={_code(self.fields)}"] if self.fields != ("width",) else []
        code += [f"keep={_code(self.keep)}"] if self.keep is not None else []
        code += [f"{name}={value}" for name, value in self.arguments().items()]
        code += [f"calls={_code([*self.calls])}"] if self.calls else []
        words = ", ".join(name for name, needed in named.items() if needed) or "nothing"
        return [words, " ".join(f"`{part}`" for part in code)]


def _code(value: Any) -> str:
    return repr(value).replace("'", '"')


def _normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), shape)


def _integers(*shape: int, below: int = 17) -> jax.Array:
    return jax.random.randint(jax.random.key(2), shape, 0, below)


IMAGES, SMALL, SERIES, VECTORS = (
    _normal(2, 16, 16, 3),
    _normal(2, 8, 8, 3),
    _normal(2, 8, 6),
    _normal(3, 6),
)
TOKENS = _integers(2, 8)
ACTIONS = jnp.array([[0], [2]])
FRAMES = _integers(2, 16, 16, 3, below=256).astype(jnp.uint8)
GRAPH = {
    "nodes": _normal(6, 5),
    "edges": _normal(12, 3),
    "senders": _integers(12, below=6),
    "receivers": jnp.arange(12) % 6,
}
NOISY = {"x": _normal(2, 8, 8, 3), "t": jnp.array([1.0, 30.0]), "label": jnp.array([3, 7])}
SENTENCES = {
    "input_ids": TOKENS,
    "token_type_ids": TOKENS % 2,
    "attention_mask": jnp.arange(8)[None] < jnp.array([[8], [5]]),
}

GROUPED = "dcjax.grouped(network, K)"
HEAD_LAST = "let the merging layer be the last one, with only linear operations after it"

ROWS = (
    Row("VGG", conv.VGG(), IMAGES, keep=("classifier",)),
    Row("ResNet", conv.ResNet(), IMAGES, ("num_filters",)),
    Row(
        "Wide ResNet",
        conv.WideResNet(),
        IMAGES,
        keep=("head",),
        note="its first convolution has 16 channels whatever the widening factor",
    ),
    Row("ResNeXt", conv.ResNet(cardinality=8), IMAGES, ("num_filters", "cardinality")),
    Row("DenseNet", conv.DenseNet(), IMAGES, ("growth_rate",), train=False),
    Row(
        "GoogLeNet, Inception",
        conv.GoogLeNet(),
        IMAGES,
        keep=("head", "aux"),
        calls=({"train": True, "mutable": ["batch_stats"]},),
        note="the second head is used in training only",
    ),
    Row("MobileNet", conv.MobileNetV2(), IMAGES, keep=("classifier",)),
    Row(
        "EfficientNet (squeeze and excite)",
        conv.MobileNetV2(squeeze=True, act=nn.swish),
        IMAGES,
        keep=("classifier",),
    ),
    Row("ShuffleNet", conv.ShuffleNet(), IMAGES),
    Row("ConvNeXt", conv.ConvNeXt(), IMAGES, ("dims",), grouped=True),
    Row("U-Net", conv.UNet(), IMAGES, ("features",)),
    Row("DeepLab", conv.DeepLab(), IMAGES, keep=("head",)),
    Row("EDSR (super-resolution)", conv.EDSR(), SMALL, ("n_feats",)),
    Row(
        "ViT, DeiT",
        transformers.ViT(),
        IMAGES,
        ("hidden_size", "num_heads", "mlp_dim"),
        grouped=True,
    ),
    Row(
        "Swin",
        transformers.Swin(version=2),
        IMAGES,
        ("embed_dim", "num_heads"),
        grouped=True,
        refused=Refused(
            transformers.Swin(),
            ("Swin/LayerNorm_1", "bring them into one order"),
            ("embed_dim", "num_heads"),
        ),
        note="merge patches as Swin V2 does, with the norm behind the dense layer: channels that "
        "are joined stand in another order than the norm's groups",
    ),
    Row(
        "MLP-Mixer",
        transformers.MlpMixer(groups=4),
        IMAGES,
        ("hidden_dim", "channels_mlp_dim", "groups"),
        grouped=True,
        refused=Refused(
            transformers.MlpMixer(),
            ("MlpMixer/MlpBlock_0/Dense_1", "let it grow with the width"),
            ("hidden_dim", "channels_mlp_dim"),
        ),
        note="kernels that mix tokens for each of several groups of channels (`nn.vmap`), not one "
        "for all",
    ),
    Row(
        "GPT-2",
        transformers.NarrowGPT(transformers.GPTConfig(tied=False)),
        TOKENS,
        grouped=True,
        refused=Refused(
            transformers.NarrowGPT(),
            ("the head's 1/K meets one that does not", "give it a kernel of its own"),
        ),
        note="a head with a kernel of its own in place of the embedding's; `narrow` for the widths "
        "in its configuration",
    ),
    Row(
        "LLaMA, Mistral (rotary positions, shared keys, SwiGLU)",
        transformers.LLaMA(),
        TOKENS,
        ("dim", "n_heads", "n_kv_heads", "ffn_dim"),
        grouped=True,
    ),
    Row(
        "… with a class of their own for RMSNorm",
        transformers.LLaMA(),
        TOKENS,
        ("dim", "n_heads", "n_kv_heads", "ffn_dim"),
        grouped=True,
        refused=Refused(
            transformers.LLaMA(norm=transformers.OwnRMSNorm),
            ("LLaMA/OwnRMSNorm_0", GROUPED),
            ("dim", "n_heads", "n_kv_heads", "ffn_dim"),
        ),
        note="`nn.RMSNorm`, which `grouped` knows, in its place",
    ),
    Row(
        "BERT, RoBERTa",
        transformers.BERT(),
        SENTENCES,
        ("hidden_size", "num_heads", "intermediate_size"),
        grouped=True,
    ),
    Row(
        "T5 (encoder and decoder)",
        transformers.T5(),
        {"inputs": TOKENS, "targets": TOKENS[:, ::-1]},
        ("d_model", "num_heads", "d_ff"),
        grouped=True,
    ),
    Row("Perceiver", transformers.Perceiver(), SMALL, ("width", "heads"), grouped=True),
    Row(
        "mixture of experts",
        transformers.MoE(groups=4),
        TOKENS,
        ("width", "groups"),
        grouped=True,
        refused=Refused(transformers.MoE(), ("the sub-networks are merged at MoE/router",)),
        note="a router and experts for each group of channels, so for each sub-network",
    ),
    Row("DiT", transformers.DiT(), NOISY, ("hidden_size", "num_heads"), grouped=True),
    Row(
        "CLIP",
        transformers.CLIP(embeddings=True),
        {"image": IMAGES, "text": TOKENS},
        ("width", "heads"),
        grouped=True,
        refused=Refused(
            transformers.CLIP(),
            ("a product of two means is not linear", HEAD_LAST),
            ("width", "heads"),
        ),
        note="return the embeddings; normalise and compare them in the loss",
    ),
    Row("LSTM, GRU", others.LSTMTagger(), TOKENS, keep=("head",)),
    Row("WaveNet", others.WaveNet(), TOKENS, ("residual_channels", "skip_channels")),
    Row("TCN", others.TCN(), SERIES, ("channels",)),
    Row("text CNN", others.TextCNN(), TOKENS, keep=("head",)),
    Row("LRU, S4D (diagonal state spaces)", others.LRU(), SERIES, grouped=True),
    Row(
        "Mamba",
        others.Mamba(groups=4),
        SERIES,
        ("width", "groups"),
        refused=Refused(others.Mamba(), ("the sub-networks are merged at Mamba/x_proj",)),
        note="B and C for each of several groups of channels, as in Mamba-2, not for all",
    ),
    Row("PPO", others.ActorCritic(), VECTORS, keep=("Dense_2", "Dense_5")),
    Row(
        "SAC",
        others.SACActor(clip=False),
        VECTORS,
        keep=("Dense_2", "Dense_3"),
        refused=Refused(others.SACActor(), ("the sub-networks are merged at SACActor/Dense_3",)),
        note="clip the deviations in the loss",
    ),
    Row("DQN (dueling)", others.DuelingDQN(), FRAMES, keep=("value", "advantage")),
    Row(
        "IMPALA",
        others.Impala(),
        {"frame": FRAMES[:, None], "action": ACTIONS, "reward": -0.5 * ACTIONS},
        keep=("policy", "value"),
    ),
    Row("GCN", others.GCN(), GRAPH, ("hidden",)),
    Row("GAT", others.GAT(), GRAPH, ("heads",)),
    Row("message passing", others.MessagePassing(), GRAPH, ("latent",), grouped=True),
    Row("PointNet", others.PointNet(), _normal(2, 9, 3), keep=("head",)),
    Row("autoencoder", others.Autoencoder(), IMAGES, keep=("pixels",)),
    Row(
        "VAE",
        others.VAE(),
        SMALL,
        ("hidden", "latents"),
        note="traced without its noise, as dropout is",
    ),
    Row(
        "GAN (DCGAN)",
        others.Generator(follow=True),
        VECTORS,
        keep=("pixels",),
        refused=Refused(others.Generator(), ("cannot reshape", "decompose(network, 4)")),
        note="let the reshape follow the layer before: `x.reshape(len(x), 4, 4, -1)`",
    ),
    Row("diffusion U-Net", others.Denoiser(), NOISY, keep=("noise",)),
    Row(
        "… with norms of joined channels (DDPM)",
        others.Denoiser(),
        NOISY,
        keep=("noise",),
        refused=Refused(
            others.Denoiser(norm_first=True), ("Denoiser/GroupNorm_9", "bring them into one order")
        ),
        note="normalise behind the convolutions: some groups would hold channels of both parts",
    ),
    Row(
        "normalizing flow (RealNVP)",
        None,
        VECTORS,
        refused=Refused(
            others.RealNVP(), ("the sub-networks are merged at RealNVP", HEAD_LAST), ("hidden",)
        ),
        note="the mean of several flows is not a flow",
    ),
    Row(
        "VQ-VAE",
        others.VQVAE(groups=4),
        SMALL,
        ("width", "groups"),
        refused=Refused(others.VQVAE(), ("VQVAE (reduce_sum)", "average within groups")),
        note="a table for each group of channels (product quantisation)",
    ),
    Row("NeRF", others.NeRF(), VECTORS[:, :3], keep=("density", "colour")),
    Row("FNO (Fourier neural operator)", others.FNO(), SERIES),
    Row(
        "DeepONet",
        others.DeepONet(merge=nn.Dense(1)),
        {"function": VECTORS, "place": VECTORS[:, :2]},
        ("hidden",),
        refused=Refused(
            others.DeepONet(),
            ("DeepONet", "merge the sub-networks with a dense layer"),
            ("hidden",),
        ),
        note="`nn.Dense(1)` in place of the sum",
    ),
    Row(
        "Wide & Deep (recommender)",
        others.WideAndDeep(),
        {"categories": _integers(3, 4), "numbers": VECTORS},
        keep=("wide", "deep"),
    ),
)


def page_table() -> str:
    """Return the table of docs/networks.md."""
    body = [[row.family, *row.takes(), row.note] for row in ROWS]
    return table(["family", "takes", "how", "mind"], body)
