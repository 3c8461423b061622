"""What a build says of itself to Prometheus."""

from teacher_cache.format.manifest import Shard
from teacher_cache.shell.metrics import Metrics

DESCRIPTIONS = {
    "teacher_cache_units_total": "Units that this builder computed",
    "teacher_cache_failed_units_total": "Units that were given up",
    "teacher_cache_teacher_seconds_total": "For how long teachers were asked about them",
    "teacher_cache_tokens_total": "Corpus tokens of the units computed",
    "teacher_cache_kept_positions_total": "Positions with targets, of the units computed",
    "teacher_cache_written_bytes_total": "Bytes of the shards computed",
    "teacher_cache_view_units": "Units of the view that is being built",
    "teacher_cache_view_units_committed": "Of these, committed by this builder or another, as far as this one knows",
}


class BuildMetrics:
    """Of one view."""

    def __init__(self, *, cache: str, view: int, num_units: int, num_committed: int) -> None:
        self._metrics = Metrics(DESCRIPTIONS, {"cache": cache, "view": str(view)})
        self._num_committed = num_committed
        self._metrics.record(
            {"teacher_cache_view_units": num_units, "teacher_cache_view_units_committed": num_committed}
        )

    def failed(self) -> None:
        """A unit was given up."""
        self._metrics.record({"teacher_cache_failed_units_total": 1})

    def committed(self, shard: Shard, *, is_new: bool, teacher_s: float) -> None:
        """A unit is committed; `is_new` where this builder computed it."""
        self._num_committed += 1
        self._metrics.record({"teacher_cache_view_units_committed": self._num_committed})
        if is_new:
            self._metrics.record(shard_figures(shard) | {"teacher_cache_teacher_seconds_total": teacher_s})


def shard_figures(shard: Shard) -> dict[str, float]:
    return {
        "teacher_cache_units_total": 1,
        "teacher_cache_tokens_total": shard.num_tokens,
        "teacher_cache_kept_positions_total": shard.num_kept,
        "teacher_cache_written_bytes_total": shard.num_bytes,
    }
