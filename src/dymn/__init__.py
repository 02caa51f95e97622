"""dymn: dynamic convolutional networks as efficient pre-trained audio models."""

from dymn.config import FrontEndConfig, ModelConfig
from dymn.frontend import LogMel
from dymn.model import MobileNet, Output, create_model

__version__ = "0.1.0"
__all__ = ["FrontEndConfig", "LogMel", "MobileNet", "ModelConfig", "Output", "create_model"]
