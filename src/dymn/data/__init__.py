"""Data: one batch, sources as published, samplers, and teacher logits that cannot be misaligned unnoticed."""

from dymn.data.batch import BadClip, Batch, Clip, collate, fit
from dymn.data.cache import cached
from dymn.data.loader import Loader
from dymn.data.pack import Packed, PackSettings, pack
from dymn.data.samplers import BalancedSampler, PlainSampler, class_counts, clip_weights
from dymn.data.source import Catalog, Source
from dymn.data.streams import Streamed
from dymn.data.tasks import TASKS, Dataset, TaskSpec, open_dataset, open_source, select, task_facts, task_of
from dymn.data.teacher import TeacherTable
from dymn.training.teach import Ensemble, spot_check, teach

__all__ = [
    "TASKS",
    "BadClip",
    "BalancedSampler",
    "Batch",
    "Catalog",
    "Clip",
    "Dataset",
    "Ensemble",
    "Loader",
    "PackSettings",
    "Packed",
    "PlainSampler",
    "Source",
    "Streamed",
    "TaskSpec",
    "TeacherTable",
    "cached",
    "class_counts",
    "clip_weights",
    "collate",
    "fit",
    "open_dataset",
    "open_source",
    "pack",
    "select",
    "spot_check",
    "task_facts",
    "task_of",
    "teach",
]
