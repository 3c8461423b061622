"""Whole comparisons on tiny caches, against dense maths and the teacher's own model."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from teacher_cache import pipeline
from teacher_cache.errors import UserError
from teacher_cache.fidelity import compare as comparing
from teacher_cache.fidelity import rows
from teacher_cache.fidelity.compare import compare
from teacher_cache.fidelity.measures import early_student
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.format.fidelity import AtTemperature, Fidelity
from teacher_cache.format.manifest import Shard
from teacher_cache.format.row import Row
from tests import caches, families

FLOAT32: Any = {"soft_labels": {"code": "float32"}}
EXACT: Any = caches.EXACT | FLOAT32
FLOAT16: Any = FLOAT32 | {"hidden": {"code": "float16"}}
BUCKET: Any = FLOAT32 | {"hidden": {"code": "none"}}
"""Codes are named, so that the figures do not depend on defaults."""


def compared(cache: Cache, num_positions: int = 10_000) -> Fidelity:
    return compare(cache, num_positions=num_positions, progress=False)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Builds a cache with a teacher and text of its own."""

    def build(**options: Any) -> Cache:
        return caches.build_cache(tmp_path_factory.mktemp("fidelity") / "cache", **options)

    return build


@pytest.fixture(scope="module")
def exact(build: Any) -> Cache:
    return build(**EXACT)


@pytest.fixture(scope="module")
def rounded(build: Any) -> Cache:
    return build(views=2, **FLOAT16)


@pytest.fixture(scope="module")
def bucketed(build: Any) -> Cache:
    return build(**BUCKET | {"soft_labels": {"code": "float32", "top_k": 4, "temperatures": [2.0, 3.0]}})


@pytest.fixture(scope="module")
def of_rounded(rounded: Cache) -> Fidelity:
    return compared(rounded)


@dataclass(frozen=True)
class Answer:
    """What the teacher's own model and the early student say at a row's masked positions, row by row, unpadded."""

    row: Row
    places: list[int]
    """Of the masked positions among the kept ones."""
    logits: torch.Tensor
    early_logits: torch.Tensor
    early_hidden: torch.Tensor


@pytest.fixture(scope="module")
def answers(rounded: Cache) -> list[Answer]:
    model = AutoModelForMaskedLM.from_pretrained(Path(rounded.url, "teacher"), attn_implementation="sdpa").eval()
    early, found = early_student(model), []
    for row in [*rounded.rows(0), *rounded.rows(1)]:
        places = np.flatnonzero(np.isin(row.kept_positions, row.label_positions)).tolist()
        positions = torch.from_numpy(row.kept_positions[places])
        input_ids = torch.tensor(row.input_ids).long()[None]
        with torch.no_grad():
            logits = model(input_ids=input_ids).logits[0, positions].double()
            student = early(input_ids=input_ids, output_hidden_states=True)
        hidden = student.hidden_states[-1][0, positions].double()
        found.append(Answer(row, places, logits, student.logits[0, positions].double(), hidden))
    return found


def dense(cache: Cache, answers: list[Answer], temperature: float) -> dict[str, float]:
    """The same figures from float64 rows."""
    divergences, confidences, gradients = [], [], torch.zeros(2, families.VOCAB_SIZE, 32, dtype=torch.float64)
    for answer in answers:
        teacher = (answer.logits / temperature).softmax(-1)
        student = (answer.early_logits / temperature).softmax(-1)
        rebuilt = torch.from_numpy(cache.replay(answer.row, temperature))[answer.places].double()
        rebuilt /= rebuilt.sum(-1, keepdim=True)  # float32 rows sum to 1 but for roundings as large as KL here
        divergences.append((teacher * (teacher / rebuilt).log()).sum(-1))
        confidences.append(rebuilt.max(-1).values)
        for place, target in enumerate((teacher, rebuilt)):
            gradients[place] += (student - target).T @ answer.early_hidden
    return {
        "kl": float(torch.cat(divergences).mean()),
        "confidence": float(torch.cat(confidences).mean()),
        "num_positions": sum(map(len, divergences)),
        "error": float((gradients[1] - gradients[0]).norm() / gradients[0].norm()),
    }


def gradients(found: AtTemperature) -> dict[str, float]:
    """Errors by student, over all positions."""
    return {gradient.student: gradient.error for gradient in found.gradients}


class TestExactCache:
    def test_all_errors_are_roundings(self, exact: Cache) -> None:
        found = compared(exact)
        assert (found.cache, found.fingerprint, found.soft_labels) == (exact.url, exact.fingerprint, "replay")
        assert [row.temperature for row in found.temperatures] == [1, 2, 4]
        for row in found.temperatures:
            assert row.kl < 1e-10
            assert set(gradients(row)) == {"early", "late"}
            assert max(gradients(row).values()) < 2e-5
            assert all(gradient.angle_degrees < 1e-3 for gradient in row.gradients)
            assert row.calibration_error_rebuilt == pytest.approx(row.calibration_error_exact, abs=1e-5)
        (cosine,) = found.cosines
        assert cosine.layer == -1
        for value in (cosine.masked, cosine.unmasked, cosine.kept):
            assert value == pytest.approx(1, abs=1e-9)

    @pytest.mark.parametrize("family", ["roberta", "albert", "distilbert"])  # the others differ in no way that counts
    def test_of_other_families(self, family: str, tmp_path: Path) -> None:
        teacher = families.save_pretrained(tmp_path / "teacher", family)
        found = compared(caches.build_cache(tmp_path / "cache", teacher=teacher, num_documents=20, **EXACT))
        assert max(max(gradients(row).values()) for row in found.temperatures) < 2e-5


class TestRoundedCache:
    @pytest.mark.parametrize(("place", "temperature"), [(0, 1.0), (1, 2.0), (2, 4.0)])
    def test_figures_are_those_of_dense_rows(
        self, place: int, temperature: float, rounded: Cache, of_rounded: Fidelity, answers: list[Answer]
    ) -> None:
        row, expected = of_rounded.temperatures[place], dense(rounded, answers, temperature)
        assert row.temperature == temperature
        assert of_rounded.num_positions == expected["num_positions"]
        assert row.kl == pytest.approx(expected["kl"], rel=0.02)
        assert gradients(row)["early"] == pytest.approx(expected["error"], rel=0.02)

    def test_a_late_student_sees_more_of_the_same_error(self, of_rounded: Fidelity) -> None:
        for row in of_rounded.temperatures:
            assert 1e-7 < gradients(row)["early"] < gradients(row)["late"] < 0.01

    def test_wrong_hidden_states_are_seen(
        self, rounded: Cache, of_rounded: Fidelity, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As from a code that is too coarse: a tenth of each state's length goes astray."""
        read = rows.read

        def spoiled(*arguments: Any) -> Iterator[tuple[Shard, Row]]:
            draw = np.random.default_rng(0)
            for shard, row in read(*arguments):
                states = row.hidden[-1].astype(np.float32)
                noise = draw.standard_normal(states.shape) * 0.1 * np.linalg.norm(states, axis=1, keepdims=True)
                yield shard, replace(row, hidden={-1: states + noise.astype(np.float32) / np.sqrt(states.shape[1])})

        monkeypatch.setattr(rows, "read", spoiled)
        found = compared(rounded)
        assert found.cosines[0].kept == pytest.approx(1 / np.sqrt(1 + 0.1**2), abs=1e-3)
        for row, untouched in zip(found.temperatures, of_rounded.temperatures, strict=True):
            assert row.kl > 100 * untouched.kl
            assert all(gradients(row)[student] > 10 * error for student, error in gradients(untouched).items())

    def test_cosines_tell_masked_from_unmasked(self, rounded: Cache, of_rounded: Fidelity) -> None:
        (cosine,) = of_rounded.cosines
        rows = [*rounded.rows(0), *rounded.rows(1)]
        kept = np.concatenate([np.isin(row.kept_positions, row.label_positions) for row in rows])
        assert None not in (cosine.masked, cosine.unmasked, cosine.kept)
        share = float(kept.mean())
        mixed = share * (cosine.masked or 0) + (1 - share) * (cosine.unmasked or 0)
        assert cosine.kept == pytest.approx(mixed, abs=1e-12)
        assert 1 - 1e-5 < mixed < 1 - 1e-9

    def test_bytes_are_those_of_the_files(self, rounded: Cache, of_rounded: Fidelity) -> None:
        sizes = of_rounded.bytes_per_kept_position
        files = [path.stat().st_size for path in Path(rounded.url).glob("shards/*/*.parquet")]
        num_kept = sum(shard.num_kept for view in (0, 1) for shard in rounded.manifest(view).shards)
        assert sizes["total"] == pytest.approx(sum(files) / num_kept)
        assert sizes["total"] == pytest.approx(sum(size for part, size in sizes.items() if part != "total"))

    def test_calibration_is_against_the_true_tokens(
        self, rounded: Cache, answers: list[Answer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []

        def spy(confidences: torch.Tensor, correct: torch.Tensor) -> float:
            seen.append((float(confidences.mean()), int(correct.sum()), len(correct)))
            return 0.5

        monkeypatch.setattr(comparing, "expected_calibration_error", spy)
        compared(rounded)
        assert all(set(answer.row.label_positions) <= set(answer.row.kept_positions) for answer in answers)
        labels = np.concatenate([answer.row.label_ids for answer in answers])
        right = int((torch.cat([answer.logits for answer in answers]).argmax(-1).numpy() == labels).sum())
        for place, temperature in enumerate((1.0, 2.0, 4.0)):
            confidence = pytest.approx(dense(rounded, answers, temperature)["confidence"], rel=1e-3)
            assert seen[2 * place : 2 * place + 2] == [(confidence, right, len(labels))] * 2


class TestSample:
    def test_no_more_positions_than_asked_for(self, rounded: Cache) -> None:
        found = compared(rounded, 64)
        assert found.num_positions == 64
        assert {gradient.num_positions for row in found.temperatures for gradient in row.gradients} == {64}
        assert found.notes == ()

    def test_a_small_cache_gives_all_that_it_has_and_says_so(self, rounded: Cache, of_rounded: Fidelity) -> None:
        found = of_rounded
        has = sum(shard.num_labels for view in (0, 1) for shard in rounded.manifest(view).shards)
        assert (found.num_positions, found.num_sequences) == (has, 80)
        assert found.notes == (f"the cache holds {has} masked positions of the 10,000 asked for",)

    def test_gradients_come_at_several_numbers_of_positions(
        self, rounded: Cache, of_rounded: Fidelity, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(comparing, "CHUNK_POSITIONS", 16)
        monkeypatch.setattr(comparing, "GRADIENT_POSITIONS", (32, 96, 10**6))
        found = compared(rounded)
        for row, before in zip(found.temperatures, of_rounded.temperatures, strict=True):
            numbers = [gradient.num_positions for gradient in row.gradients]
            assert numbers == [32, 32, 96, 96, found.num_positions, found.num_positions]
            assert row.kl == pytest.approx(before.kl, rel=1e-3)
            assert gradients(row) == pytest.approx(gradients(before), rel=1e-3)

    def test_it_is_the_same_every_time(self, rounded: Cache) -> None:
        assert asdict(compared(rounded, 64)) == asdict(compared(open_cache(rounded.url), 64))

    def test_other_rows_make_up_for_too_few_positions(self, rounded: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
        """How many a row has is chance: here two hold far fewer than were hoped for."""
        monkeypatch.setattr(rows, "spread", lambda *_: {0: [3], 9: [7]})
        found = compared(rounded, 64)
        assert found.num_positions == 64
        assert found.num_sequences == 2 + 64, "read in batches of 64"

    def test_without_masked_positions_there_is_nothing_to_measure(self, build: Any) -> None:
        cache = build(keep={"masked": 0.0, "unmasked": 0.5}, num_documents=5, **FLOAT16)
        with pytest.raises(UserError, match=r"keeps 0 masked positions, .* with keep\.masked above 0"):
            compared(cache)

    def test_too_few_positions_are_refused(self, rounded: Cache) -> None:
        with pytest.raises(UserError, match="positions is 63, at least 64 are needed"):
            compared(rounded, 63)


class TestBucketCache:
    def test_gradients_err_by_the_tail_and_the_rest_is_exact(self, bucketed: Cache) -> None:
        found = compared(bucketed)
        (row,) = found.temperatures
        assert (found.soft_labels, found.cosines, row.temperature) == ("bucket", (), 2)
        assert row.kl < 1e-10, "of the bucketed rows"
        assert row.calibration_error_rebuilt == pytest.approx(row.calibration_error_exact, abs=1e-5)
        assert all(0.01 < error < 1 for error in gradients(row).values())
        assert found.bytes_per_kept_position["hidden"] == 0

    def test_what_is_left_out_is_noted(self, bucketed: Cache) -> None:
        _, one, four, what = compared(bucketed).notes
        assert one == "T = 1 is left out: a bucket's mass is known only at the stored temperatures (2, 3)"
        assert four == one.replace("T = 1", "T = 4")
        assert what.startswith("the cache stores no last hidden states")

    def test_without_temperatures_no_row_can_be_rebuilt(self, build: Any) -> None:
        found = compared(build(**BUCKET | {"soft_labels": {"code": "float32", "top_k": 4, "temperatures": []}}))
        assert found.temperatures == ()
        assert "T = 4 is left out: a bucket's mass is known only at the stored temperatures (none)" in found.notes

    def test_a_bucket_of_nothing_is_exact_at_any_temperature(self, build: Any) -> None:
        found = compared(build(**BUCKET | {"soft_labels": {"code": "float32", "top_k": families.VOCAB_SIZE}}))
        assert [row.temperature for row in found.temperatures] == [1, 2, 4]
        assert max(max(gradients(row).values()) for row in found.temperatures) < 2e-5


class TestOtherCaches:
    def test_defaults_are_true_enough_to_learn_from(self, build: Any) -> None:
        found = compared(build(views=2))
        assert all(0.98 < (cosine.kept or 0) <= 1 for cosine in found.cosines)
        assert all(gradients(row)["early"] < 0.05 for row in found.temperatures)

    @pytest.mark.parametrize(("layers", "source"), [([0, 2], "bucket"), ([1, 4], "replay")])
    def test_stored_layers_are_told_apart(self, layers: list[int], source: str, build: Any) -> None:
        found = compared(build(**FLOAT32, hidden={"code": "float16", "layers": layers}))
        assert found.soft_labels == source
        assert [cosine.layer for cosine in found.cosines] == layers
        assert all((cosine.kept or 0) > 1 - 1e-6 for cosine in found.cosines)

    def test_replay_at_a_temperature_that_is_not_stored_is_noted(self, build: Any) -> None:
        found = compared(build(**FLOAT16 | {"soft_labels": {"code": "float32", "temperatures": [2.0]}}))
        assert [row.temperature for row in found.temperatures] == [1, 2, 4]
        one, four = found.notes[1:]
        assert one == "T = 1 is not among the stored temperatures (2): the mass of the rest is not exact there"
        assert four == one.replace("T = 1", "T = 4")

    def test_a_teacher_of_another_dtype_is_asked_in_it(self, tmp_path: Path) -> None:
        spec = caches.make_spec(tmp_path / "cache", **EXACT)
        pipeline.build(replace(spec, teacher=replace(spec.teacher, dtype="bfloat16")), progress=False)
        (cosine,) = compared(open_cache(spec.cache)).cosines
        assert cosine.kept == pytest.approx(1, abs=1e-6), "float32 states would be farther away"

    def test_a_teacher_of_one_layer_has_no_early_student(self, tmp_path: Path) -> None:
        teacher = families.save_pretrained(tmp_path / "teacher", num_hidden_layers=1)
        found = compared(caches.build_cache(tmp_path / "cache", teacher=teacher, **FLOAT16))
        assert {gradient.student for row in found.temperatures for gradient in row.gradients} == {"late"}
        assert found.notes[1] == "the early student is left out: the teacher has one layer, and none to drop"
