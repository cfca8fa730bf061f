"""The settings of a run, frozen dataclasses: every field is a flag of the command line."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple


class Expected(NamedTuple):
    """The numbers that a flag takes, in words, and the test for them, which NaN fails."""

    words: str
    test: Callable[[float], bool]

    def __repr__(self) -> str:  # the command line's messages show it
        return self.words


LARGEST = 2**31 - 1  # JAX counts in 32 bits; larger seeds would repeat smaller ones
Count = Annotated[int, Expected(f"an integer from 1 to {LARGEST}", lambda x: 1 <= x <= LARGEST)]
Natural = Annotated[int, Expected(f"an integer from 0 to {LARGEST}", lambda x: 0 <= x <= LARGEST)]
Width = Annotated[int, Expected("an integer from 1 to 65536", lambda x: 1 <= x <= 2**16)]
# In float32 larger ones would be infinite, and smaller ones zero.
NotNegative = Annotated[float, Expected("a number from 0 to 1e30", lambda x: 0 <= x <= 1e30)]
Positive = Annotated[float, Expected("a number from 1e-30 to 1e30", lambda x: 1e-30 <= x <= 1e30)]
Part = Annotated[float, Expected("a number from 0 to 0.999999", lambda x: 0 <= x <= 0.999999)]


@dataclasses.dataclass(frozen=True)
class Network:
    """The global network, and what its sub-networks see."""

    model: str = "resnet"
    """resnet, cnn or MODULE:CLASS. Your class is a Flax Linen module, found from the current
    directory; it takes num_classes, and width and depth if it has them; its call takes train."""
    depth: Count = 8
    """Layers with weights: 6n+2 for a resnet (8, 14, 20, …), 3n+2 for a cnn (5, 8, 11, …)."""
    width: Width = 32
    """Channels of the global network's first stage; each sub-network has width / subnets."""
    samples: Literal["replicate", "channels", "tiles", "phases", "bands"] = "replicate"
    """The part of an image that each sub-network sees."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of training; auto is float32 on the CPU, else bfloat16. Parameters and evaluation
    are always float32."""
    native: bool = True
    """On the CPU, use convolutions compiled for its processor. They need a C++ compiler once;
    without one, JAX's convolutions are used, with a notice."""


@dataclasses.dataclass(frozen=True)
class Training:
    """The three stages: stochastic gradient descent with momentum by default, cosine decay."""

    subnet_epochs: Natural = 8
    """Epochs of the sub-networks."""
    finetune_epochs: Natural = 2
    """Epochs of the composed network."""
    baseline_epochs: Natural = 6
    """Epochs of the baseline. It is the global network trained from scratch, for comparison."""
    batch_size: Count = 128
    """Images a step."""
    optimizer: str = "sgd"
    """sgd, a name in optax or MODULE:FUNCTION. Your function makes an optimiser from a learning
    rate. Others than sgd need their own --learning-rate, and do not carry their state into
    fine-tuning."""
    learning_rate: Positive = 0.8
    """Peak learning rate of sub-networks and baseline. The default suits width 32; at width 64, 0.4
    is better for the sub-networks (docs/results.md)."""
    finetune_rate: Positive | None = None
    """Peak learning rate of fine-tuning; by default --learning-rate."""
    warmup_epochs: NotNegative = 0.5
    """Epochs of linear warm-up of the sub-networks, at most half of their training."""
    baseline_warmup_epochs: NotNegative = 1.5
    """Epochs of warm-up of the baseline; it needs more than narrow networks (docs/results.md)."""
    weight_decay: NotNegative = 5e-4
    """Weight decay of the kernels."""
    label_smoothing: Part = 0.0
    """Part of each label that is spread evenly over all classes, in all stages."""
    evaluate_every: Count | None = None
    """Steps between evaluations of the global network; by default it is evaluated after each epoch.
    More evaluations give finer times to an accuracy, but on accelerators each step is then a
    separate call."""
    average: Part = 0.95
    """Evaluate and hand on an average of the weights over about 1 / (1 - this) steps, in all
    stages: 0.95 for about 20 steps; 0 for the last weights."""
    average_every: Natural | None = None
    """Fine-tune a copy of the network on each device, with its part of each batch, and average the
    copies every so many steps, for evaluations, and at the end; 0 leaves out the first. By default
    the devices share each step. For slow links between machines (docs/scaling.md)."""
    baseline_average_every: Natural | None = None
    """The same for the baseline."""
    outer_rate: Positive | None = None
    """Rate of an outer step with Nesterov momentum 0.9 after each of these averages, as in DiLoCo,
    which takes 0.7; by default the average itself is taken."""


@dataclasses.dataclass(frozen=True)
class Transfer:
    """How the sub-networks' training continues in fine-tuning."""

    subnet_final_rate: NotNegative | None = None
    """Learning rate at which the sub-networks end. By default fine-tuning begins there: one
    schedule runs through both stages and decays once, in fine-tuning. With 0 they decay too."""
    finetune_warmup_epochs: NotNegative = 0.0
    """Epochs of linear warm-up of fine-tuning, at most half of it."""
    carry_momentum: bool = True
    """Start fine-tuning with the sub-networks' momenta, composed; otherwise with zero momenta."""
    head_rate: NotNegative | None = None
    """Factor of the fine-tuning learning rate for the head's kernel; by default min(1, 4/K), which
    keeps the logits from changing too fast with many sub-networks."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The images."""

    dataset: str = "auto"
    """cifar10, cifar100, digits, tfds:NAME, folder:PATH or auto. tensorflow-datasets has prepared
    tfds:NAME; folder:PATH holds PATH/train/<class>/*.jpg and PATH/test/<class>/*.jpg, or
    PATH/<class>/*.jpg; auto is cifar10, or digits if it cannot be had and no --data-dir is
    given."""
    data_dir: Path | None = None
    """Directory of tensorflow-datasets; by default TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    train_size: Count | None = 10_000
    """Train on at most this many images. They are a seeded and class-balanced choice; None for
    all."""
    image_size: Count | None = None
    """Resize the shorter side to this and cut out the middle; by default 64 where the images differ
    in size or are larger than 128."""
    augment: Literal["auto", "mirror", "shift", "none"] = "auto"
    """How training varies images: shifted and mirrored at random, shifted only, or as they are.
    auto mirrors photographs, but not digits, letters and garments."""


@dataclasses.dataclass(frozen=True)
class Keeping:
    """The files to keep, and the reaction to a failure."""

    checkpoint_every: Count | None = None
    """Steps between checkpoints; by default one after each epoch. Saving within an epoch counts as
    training time."""
    keep: Count = 2
    """Number of newest checkpoints to keep of each stage."""
    only_subnet: Natural | None = None
    """Train only this sub-network (counted from 0). The command without this flag collects those
    that are trained and trains the others."""
    on_diverged: Literal["stop", "restart", "drop"] = "stop"
    """If a sub-network's loss becomes NaN or infinite: stop; restart it from its last good
    checkpoint with another random key and half the learning rate; or drop it from the head."""
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Send the metrics to a tracker too; metrics.jsonl in the workdir always has them."""
    dry_run: bool = False
    """Print the plan and train nothing: parameters, operations, steps, memory, the layout, and
    times estimated from a few steps."""
    fresh: bool = False
    """Start again. What an earlier run left in the workdir is deleted."""


@dataclasses.dataclass(frozen=True)
class Machines:
    """Several processes, on one machine or many: the same command in each (docs/scaling.md)."""

    distributed: bool = False
    """Join the other processes of this Slurm, MPI or Kubernetes job, which JAX finds by itself."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 can be reached by all."""
    processes: Count | None = None
    """The number of processes."""
    process: Natural | None = None
    """The number of this process, from 0 on. Process 0 prints and writes the results."""
    join_seconds: Count = 300
    """Seconds to wait for the others at the start."""
    heartbeat_seconds: Count = 30
    """Seconds after which a process without a sign of life counts as dead, which ends all."""

    @property
    def several(self) -> bool:
        """Whether there are other processes to join."""
        return self.distributed or self.coordinator is not None


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train K sub-networks, compose them, fine-tune the whole."""

    subnets: Count = 4
    """K, the number of sub-networks; it divides the width."""
    seed: Natural = 0
    """Seed of everything random."""
    preset: Literal["quick", "digits", "paper"] = "quick"
    """Defaults of the other flags: quick (CIFAR-10, minutes on two CPU cores), digits (1,400 small
    images, no network needed, two minutes) or paper (ResNet-32 of width 64, 160 epochs: for
    GPUs)."""
    workdir: Path | None = None
    """Folder for the results; by default a folder in runs/, named after the settings."""
    network: Network = Network()
    training: Training = Training()
    transfer: Transfer = Transfer()
    data: Data = Data()
    keeping: Keeping = Keeping()
    machines: Machines = Machines()

    @property
    def finetune_rate(self) -> float:
        """The peak learning rate of fine-tuning."""
        given = self.training.finetune_rate
        return self.training.learning_rate if given is None else given

    @property
    def head_rate(self) -> float:
        """The factor of the fine-tuning learning rate for the head's kernel.

        >>> Settings(subnets=4).head_rate, Settings(subnets=8).head_rate
        (1.0, 0.5)
        """
        given = self.transfer.head_rate
        return min(1.0, 4 / self.subnets) if given is None else given

    @property
    def subnet_final_rate(self) -> float:
        """The learning rate at which the sub-networks end."""
        given = self.transfer.subnet_final_rate
        return min(self.training.learning_rate, self.finetune_rate) if given is None else given
