"""Data: one batch, sources as published, samplers, and teacher logits that cannot be misaligned unnoticed."""

from dymn.data.batch import BadClip, Batch, Clip, collate, fit
from dymn.data.cache import cached
from dymn.data.loader import Loader
from dymn.data.pack import Packed, PackSettings, pack
from dymn.data.resident import Resident
from dymn.data.samplers import BalancedSampler, PlainSampler, WeightedSampler, class_counts, clip_weights, heard_weights
from dymn.data.source import Catalog, Source
from dymn.data.streams import Streamed
from dymn.data.tasks import TASKS, Dataset, TaskSpec, open_dataset, open_source, select, task_facts, task_of
from dymn.data.teacher import TeacherTable

__all__ = [
    "TASKS",
    "BadClip",
    "BalancedSampler",
    "Batch",
    "Catalog",
    "Clip",
    "Dataset",
    "Loader",
    "PackSettings",
    "Packed",
    "PlainSampler",
    "Resident",
    "Source",
    "Streamed",
    "TaskSpec",
    "TeacherTable",
    "WeightedSampler",
    "cached",
    "class_counts",
    "clip_weights",
    "collate",
    "fit",
    "heard_weights",
    "open_dataset",
    "open_source",
    "pack",
    "select",
    "task_facts",
    "task_of",
]
