"""A task from its files or the hub, its features for a tokenizer, and the score of predictions."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import UserError
from teacher_cache.tasks import classification, conll, tagging
from teacher_cache.tasks.config import TaskConfig
from teacher_cache.tasks.files import describe, task_urls
from teacher_cache.tasks.glue import GLUE, MNLI_METRICS, read_glue
from teacher_cache.tasks.record import Kind, Split, Task
from teacher_cache.tasks.table import read_table

if TYPE_CHECKING:
    from datasets import Dataset

BATCH_EXAMPLES = 1000
"""Tokenised at once: offsets take some hundred bytes a token while they are there."""
