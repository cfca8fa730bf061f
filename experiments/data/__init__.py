"""The data sets of the experiments; `sources` says how to add one.

>>> from experiments import data
>>> digits = data.load("digits")
>>> digits.train.images.shape, digits.train.labels.dtype, len(digits.classes)
((1400, 32, 32, 3), dtype('int32'), 10)
>>> data.load("digits", train_size=100).train.labels.shape
(100,)

Importing this is quick and starts neither JAX nor tensorflow-datasets; TensorFlow is never needed.
"""

from experiments.data.load import load as load
from experiments.data.types import DataError as DataError
from experiments.data.types import Dataset as Dataset
from experiments.data.types import Split as Split
