"""Fidelity: exact rows of the teacher, run anew, against the rows that a student gets from the cache.

Legend: N masked positions, K positions of a chunk, V vocabulary, d hidden size.
"""

from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm

from teacher_cache.errors import UserError
from teacher_cache.fidelity import NUM_POSITIONS
from teacher_cache.fidelity.measures import GradientError, expected_calibration_error
from teacher_cache.fidelity.rebuilt import BucketedRows, RebuiltRows, ReplayedRows
from teacher_cache.fidelity.sample import Sample, draw
from teacher_cache.format.cache import Cache
from teacher_cache.format.fidelity import AtTemperature, Cosine, Fidelity, Gradient, Source
from teacher_cache.format.sizes import PARTS, part_sizes
from teacher_cache.teacher import Teacher

TEMPERATURES = (1.0, 2.0, 4.0)
MIN_POSITIONS = 64
"""Fewer say nothing: gradients of few positions differ by chance."""
GRADIENT_POSITIONS = (1_536, NUM_POSITIONS)
"""Numbers of positions at which gradients are compared: the more are summed, the more of the errors cancel."""
CHUNK_POSITIONS = 256
"""Positions whose whole rows are held at once: 256 * 30,522 float32 are 31 MB. Divides `GRADIENT_POSITIONS`."""


def compare(cache: Cache, *, num_positions: int = NUM_POSITIONS, progress: bool = True) -> Fidelity:
    """Runs the teacher on a sample of stored inputs, and measures how true the cache is to what it says.

    Raises:
        UserError: `num_positions` is below 64, no view is sealed, next to no masked positions are kept, or the cache is
            of a task.
    """
    if num_positions < MIN_POSITIONS:
        raise UserError(
            f"positions is {num_positions}, at least {MIN_POSITIONS} are needed to measure anything: ask for more"
        )
    if cache.spec.task:
        raise UserError(
            f"{cache.url} keeps all that its teacher answers, exactly; `teacher-cache verify --teacher` shows it"
        )
    with torch.inference_mode():
        sample, teacher = draw(cache, num_positions, progress=progress)
        comparison = _Comparison(cache, sample, teacher)
        temperatures = comparison.temperatures()
        with tqdm(
            desc="comparing rows",
            total=sample.num_positions * len(temperatures),
            unit=" positions",
            disable=not progress,
        ) as bar:
            found = tuple(comparison.at(temperature, bar.update) for temperature in temperatures)
    return Fidelity(
        cache=cache.url,
        fingerprint=cache.fingerprint,
        soft_labels=comparison.source,
        num_positions=sample.num_positions,
        num_sequences=sample.num_sequences,
        temperatures=found,
        cosines=_cosines(sample),
        bytes_per_kept_position=_bytes_per_kept_position(cache, sample),
        notes=(*_sample_notes(sample, num_positions), *comparison.notes()),
    )


class _Comparison:
    """Exact rows and rebuilt rows of a sample."""

    def __init__(self, cache: Cache, sample: Sample, teacher: Teacher) -> None:
        self._sample = sample
        self._teacher = teacher
        self.source: Source = "bucket" if sample.stored is None else "replay"
        self._head = None if sample.stored is None else cache.head.to(teacher.device)
        self._vocab_size = cache.teacher.vocab_size
        self._stored = list(sample.soft_labels.rest_log_sum_exp)
        """Temperatures at which the rest's mass is stored; none where the top k are all."""
        self._is_whole = cache.spec.soft_labels.top_k == self._vocab_size

    def temperatures(self) -> list[float]:
        """Those at which rows can be rebuilt."""
        return [temperature for temperature in TEMPERATURES if self.source == "replay" or self._is_exact(temperature)]

    def _is_exact(self, temperature: float) -> bool:
        return self._is_whole or temperature in self._stored

    def notes(self) -> list[str]:
        """On what is left out, and on what the figures stand for."""
        listed = ", ".join(f"{value:g}" for value in self._stored) or "none"
        what = {
            "bucket": "T = {:g} is left out: a bucket's mass is known only at the stored temperatures ({})",
            "replay": "T = {:g} is not among the stored temperatures ({}): the mass of the rest is not exact there",
        }[self.source]
        notes = [what.format(value, listed) for value in TEMPERATURES if not self._is_exact(value)]
        if self.source == "bucket":
            notes.append(
                "the cache stores no last hidden states: KL is over the top k and one bucket, and for gradients the"
                " bucket is spread as the student's own probabilities are"
            )
        return notes

    def at(self, temperature: float, advance: Callable[[int], object]) -> AtTemperature:
        """Compares all rows at one temperature; `advance` is told of each chunk's number of positions."""
        tally = _Tally(self._sample, self._vocab_size, self._teacher.device)
        for chunk in self._chunks():
            exact = self._log_probabilities(self._sample.exact[chunk], temperature)
            rebuilt = self._rebuilt(chunk, temperature)
            tally.add_rows(exact, rebuilt, chunk)
            probabilities = exact.exp()
            for name, hidden in self._sample.students.items():
                student = self._log_probabilities(hidden[chunk], temperature).exp()
                tally.add_gradient(name, student, probabilities, rebuilt.target(student), hidden[chunk])
            tally.stop(chunk.stop)
            advance(chunk.stop - chunk.start)
        return tally.result(temperature)

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, self._sample.num_positions, CHUNK_POSITIONS):
            yield slice(start, min(start + CHUNK_POSITIONS, self._sample.num_positions))

    def _log_probabilities(self, hidden: torch.Tensor, temperature: float) -> torch.Tensor:
        """Of last hidden states `[K, d]` through the teacher's head: float32 `[K, V]`."""
        return (self._teacher.logits(hidden) / temperature).log_softmax(dim=-1)

    def _rebuilt(self, chunk: slice, temperature: float) -> RebuiltRows:
        soft = self._sample.soft_labels[chunk].to(self._teacher.device)
        if self._sample.stored is None or self._head is None:
            return BucketedRows.of(soft, temperature)
        return ReplayedRows.of(self._sample.stored[chunk].to(self._teacher.device), self._head, soft, temperature)


class _Tally:
    """Figures of one temperature, added up over chunks."""

    def __init__(self, sample: Sample, vocab_size: int, device: torch.device) -> None:
        self._num_positions = sample.num_positions
        size = vocab_size, sample.exact.shape[1]
        self._errors = {name: GradientError(*size, device=device) for name in sample.students}
        self._gradients: list[Gradient] = []
        self._divergence = 0.0
        # Whole from the start: small tensors kept from each chunk would lie among the freed rows and split that memory.
        self._confidences = {name: torch.empty(sample.num_positions) for name in ("exact", "rebuilt")}
        self._best_ids = {name: torch.empty_like(sample.label_ids) for name in ("exact", "rebuilt")}
        self._label_ids = sample.label_ids

    def add_rows(self, exact: torch.Tensor, rebuilt: RebuiltRows, chunk: slice) -> None:
        """Adds exact log-probabilities `[K, V]`, and the same as rebuilt."""
        self._divergence += float(rebuilt.kl(exact).double().sum())
        for name, (ids, confidences) in {"exact": ReplayedRows(exact).best(), "rebuilt": rebuilt.best()}.items():
            self._confidences[name][chunk] = confidences.cpu()
            self._best_ids[name][chunk] = ids.cpu()

    def add_gradient(
        self, name: str, student: torch.Tensor, exact: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor
    ) -> None:
        """See `GradientError.add`."""
        self._errors[name].add(student, exact, target, hidden.to(student.device))

    def stop(self, num_positions: int) -> None:
        """Notes the gradients so far where this is a number of positions to be reported."""
        if num_positions in (*GRADIENT_POSITIONS, self._num_positions):
            for name, error in self._errors.items():
                found = error.result()
                self._gradients.append(
                    Gradient(
                        student=name,
                        num_positions=num_positions,
                        error=found.error,
                        angle_degrees=found.angle_degrees,
                    )
                )

    def result(self, temperature: float) -> AtTemperature:
        return AtTemperature(
            temperature=temperature,
            kl=self._divergence / self._num_positions,
            calibration_error_exact=self._calibration_error("exact"),
            calibration_error_rebuilt=self._calibration_error("rebuilt"),
            gradients=tuple(self._gradients),
        )

    def _calibration_error(self, name: str) -> float:
        return expected_calibration_error(self._confidences[name], self._best_ids[name] == self._label_ids)


def _cosines(sample: Sample) -> tuple[Cosine, ...]:
    return tuple(
        Cosine(layer=layer, masked=found.mean(True), unmasked=found.mean(False), kept=found.mean(True, False))
        for layer, found in sample.cosines.items()
    )


def _bytes_per_kept_position(cache: Cache, sample: Sample) -> dict[str, float]:
    sizes = [part_sizes(cache.store, shard) for shard in sample.shards]
    num_kept = sum(shard.num_kept for shard in sample.shards)
    per_position = {part: sum(size[part] for size in sizes) / num_kept for part in PARTS}
    return per_position | {"total": sum(per_position.values())}


def _sample_notes(sample: Sample, num_positions: int) -> list[str]:
    notes = []
    if sample.num_positions < num_positions:
        notes.append(f"the cache holds {sample.num_positions:,} masked positions of the {num_positions:,} asked for")
    if "early" not in sample.students:
        notes.append("the early student is left out: the teacher has one layer, and none to drop")
    return notes
