"""The parts of a block, one idea of the paper in each module."""

from dymn.architectures import ATTENTIONS, CONTEXTS
from dymn.models.layers import attention as attention
from dymn.models.layers.context import Context, ContextGenerator
from dymn.models.layers.dyconv import DynamicConv2d, StaticConv2d
from dymn.models.layers.dyrelu import ACTIVATIONS, DynamicReLU, StaticActivation

__all__ = [
    "ACTIVATIONS",
    "ATTENTIONS",
    "CONTEXTS",
    "Context",
    "ContextGenerator",
    "DynamicConv2d",
    "DynamicReLU",
    "StaticActivation",
    "StaticConv2d",
]
