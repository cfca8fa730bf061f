"""Convolutions compiled for the processor they run on, for XLA's CPU backend.

XLA's convolutions are slow on CPUs where channels are few, as sub-networks' are. These are compiled
by the machine's C++ compiler at their first use, and kept in the user's cache.
"""

from dcjax.native._build import NativeError as NativeError
from dcjax.native._build import build as build
from dcjax.native._convolution import conv_general_dilated as conv_general_dilated
