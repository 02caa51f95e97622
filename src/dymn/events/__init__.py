"""When each sound begins and ends: the probabilities of labels frame by frame, and the events that they amount to."""

from dymn.events.decisions import Event, EventSettings, decide
from dymn.events.frames import METHODS, Frames, FrameSettings, frames

__all__ = ["METHODS", "Event", "EventSettings", "FrameSettings", "Frames", "decide", "frames"]
