"""Flax Linen networks whose one field `width` scales every layer but the head."""

from dcjax.models._norm import BatchNorm as BatchNorm
from dcjax.models.cnn import CNN as CNN
from dcjax.models.resnet import ResNet as ResNet
