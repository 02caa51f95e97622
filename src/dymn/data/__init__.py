"""Datasets in their published layouts, samplers, batches, and tables of teacher logits that are checked.

Names are imported when they are first used: reading annotations does not need PyTorch, loading clips does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dymn.data.batch import BadClip as BadClip
    from dymn.data.batch import Batch as Batch
    from dymn.data.batch import Clip as Clip
    from dymn.data.batch import collate as collate
    from dymn.data.batch import fit as fit
    from dymn.data.cache import cached as cached
    from dymn.data.catalog import Catalog as Catalog
    from dymn.data.loader import Loader as Loader
    from dymn.data.packing import Packed as Packed
    from dymn.data.packing import PackSettings as PackSettings
    from dymn.data.packing import pack as pack
    from dymn.data.resident import Resident as Resident
    from dymn.data.samplers import BalancedSampler as BalancedSampler
    from dymn.data.samplers import PlainSampler as PlainSampler
    from dymn.data.samplers import WeightedSampler as WeightedSampler
    from dymn.data.samplers import class_counts as class_counts
    from dymn.data.samplers import clip_weights as clip_weights
    from dymn.data.samplers import heard_weights as heard_weights
    from dymn.data.source import Source as Source
    from dymn.data.streams import Streamed as Streamed
    from dymn.data.tasks import TASKS as TASKS
    from dymn.data.tasks import Dataset as Dataset
    from dymn.data.tasks import TaskSpec as TaskSpec
    from dymn.data.tasks import open_dataset as open_dataset
    from dymn.data.tasks import open_source as open_source
    from dymn.data.tasks import select as select
    from dymn.data.tasks import task_facts as task_facts
    from dymn.data.tasks import task_of as task_of
    from dymn.data.teacher import TeacherTable as TeacherTable

_NAMES = {
    "batch": "BadClip Batch Clip collate fit",
    "cache": "cached",
    "catalog": "Catalog",
    "loader": "Loader",
    "packing": "PackSettings Packed pack",
    "resident": "Resident",
    "samplers": "BalancedSampler PlainSampler WeightedSampler class_counts clip_weights heard_weights",
    "source": "Source",
    "streams": "Streamed",
    "tasks": "TASKS Dataset TaskSpec open_dataset open_source select task_facts task_of",
    "teacher": "TeacherTable",
}
_MODULES = {name: f"dymn.data.{module}" for module, names in _NAMES.items() for name in names.split()}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'dymn.data' has no attribute {name!r}")
