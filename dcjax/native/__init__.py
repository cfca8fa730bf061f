"""Convolutions compiled for the processor they run on, for XLA's CPU backend.

XLA's convolutions run at a fraction of a CPU's speed where channels are few, as sub-networks' are.
These are compiled at their first use, by the C++ compiler that is there, and kept in the user's
cache. Importing this compiles nothing.
"""

from dcjax.native._build import NativeError as NativeError
from dcjax.native._build import build as build
from dcjax.native._convolution import conv_general_dilated as conv_general_dilated
