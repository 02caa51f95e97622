"""A recording at a glance: its spectrogram, and beneath it when each of its sounds is there, as a picture or a page with the sound."""

from dymn.pictures.overview import Overview, overview

__all__ = ["Overview", "overview"]
