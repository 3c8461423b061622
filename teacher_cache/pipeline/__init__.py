"""Building a cache: the Ray Data shell around `corpus`, `units` and `format`. No maths in it.

Corpus files become sequences once; units of sequences become shards, one actor call and one receipt each.
"""

from teacher_cache.pipeline.run import build, extend, repair
from teacher_cache.pipeline.summary import BuildSummary

__all__ = ["BuildSummary", "build", "extend", "repair"]
