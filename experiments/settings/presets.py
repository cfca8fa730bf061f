"""The presets: the settings from which the other flags depart."""

from experiments.settings.flags import Data, Network, Settings, Training, Transfer

# Smaller batches than quick, so that an epoch of few images has enough steps.
_DIGITS = Settings(
    preset="digits",
    training=Training(
        subnet_epochs=8,
        finetune_epochs=4,
        baseline_epochs=12,
        batch_size=32,
        learning_rate=0.1,
        baseline_warmup_epochs=0.5,
    ),
    data=Data(dataset="digits", train_size=None),
)
# The paper's network (ResNet-32, four sub-networks of width 16) with the usual recipe for it. The
# abstracts do not give the split of the epochs; half as many for fine-tuning is our choice. Two
# schedules instead of one, because the study looked at few epochs only.
_PAPER = Settings(
    preset="paper",
    network=Network(depth=32, width=64),
    training=Training(
        subnet_epochs=160,
        finetune_epochs=80,
        baseline_epochs=160,
        batch_size=128,
        learning_rate=0.1,
        finetune_rate=0.05,
        warmup_epochs=1.0,
        baseline_warmup_epochs=1.0,
        weight_decay=1e-4,
        average=0.0,
    ),
    transfer=Transfer(subnet_final_rate=0.0, finetune_warmup_epochs=0.5, carry_momentum=False),
    data=Data(train_size=None),
)
PRESETS = {"quick": Settings(), "digits": _DIGITS, "paper": _PAPER}
