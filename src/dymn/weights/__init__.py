"""Checkpoints: the registry of published ones, their download, dymn's own format, and the import of EfficientAT's."""

from dymn.weights.efficientat import import_efficientat

__all__ = ["import_efficientat"]
