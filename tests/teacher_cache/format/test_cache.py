"""A cache as its readers see it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from teacher_cache.errors import UserError
from teacher_cache.format import manifest, spec, teacher_files
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.format.manifest import Shard
from teacher_cache.format.objects import put_content
from teacher_cache.format.row import Row
from teacher_cache.format.shard import encode
from teacher_cache.format.spec import Identity
from teacher_cache.storage.store import Store
from teacher_cache.targets.soft_labels import keep_top
from tests.families import VOCAB_SIZE, make_model, save_pretrained
from tests.teacher_cache.format.samples import DIGESTS, PLAIN, flip, identity, shard
from tests.teacher_cache.format.test_shard import make_rows

LENGTHS = [[5, 6, 7, 8], [9, 5, 6, 7], [8, 9]]
"""Of the sequences of each unit."""
NUM_SEQUENCES = 10


def put_unit(store: Store, view: int, unit: int, rows: list[Row], identity: Identity) -> Shard:
    labels, hidden = encode(rows, identity, PLAIN, metadata={"fingerprint": identity.fingerprint})
    prefix = f"shards/{view:05d}/{unit:09d}"
    return Shard(
        unit=unit,
        labels=put_content(store, prefix, ".labels.parquet", labels),
        hidden=put_content(store, prefix, ".hidden.parquet", hidden) if hidden else None,
        num_sequences=len(rows),
        num_tokens=sum(len(row.input_ids) for row in rows),
        num_labels=sum(len(row.label_positions) for row in rows),
        num_kept=sum(len(row.kept_positions) for row in rows),
    )


def put_view(store: Store, view: int, units: list[list[Row]], identity: Identity) -> None:
    """Commits and seals a view."""
    for unit, rows in enumerate(units):
        manifest.commit(store, view, put_unit(store, view, unit, rows, identity), identity.fingerprint)
    manifest.seal(store, view=view, num_units=len(units), fingerprint=identity.fingerprint, digests=DIGESTS)


def random_units(view: int, identity: Identity) -> list[list[Row]]:
    firsts = [0, 4, 8]
    return [make_rows(10 * view + unit, identity, LENGTHS[unit], 0.5, firsts[unit]) for unit in range(3)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A cache with one sealed view of three units."""
    store = Store(str(tmp_path / "cache"))
    spec.create_or_check(store, identity(), {"teacher": {"model": "a tiny one"}})
    put_view(store, 0, random_units(0, identity()), identity())
    return store


def only(store: Store, pattern: str) -> Path:
    """The one object whose path matches."""
    (path,) = Path(store.root).glob(pattern)
    return path


def test_an_opened_cache_knows_its_spec_and_notes(store: Store) -> None:
    cache = open_cache(store.url + "/")
    assert (cache.spec, cache.fingerprint) == (identity(), identity().fingerprint)
    assert cache.notes == {"teacher": {"model": "a tiny one"}}


def test_a_folder_without_cache_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is no teacher cache"):
        open_cache(str(tmp_path / "nothing"))


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 4), (3, 5), (4, 8), (9, 10), (5, 5), (10, None), (2, 99)])
def test_rows_of_a_range_come_once_and_in_order(store: Store, start: int, stop: int | None) -> None:
    found = [row.sequence_id for row in open_cache(store.url).rows(0, start, stop)]
    assert found == list(range(NUM_SEQUENCES))[start:stop]


def test_rows_hold_what_was_put(store: Store) -> None:
    expected = [row for rows in random_units(0, identity()) for row in rows]
    for found, row in zip(open_cache(store.url).rows(), expected, strict=True):
        np.testing.assert_array_equal(found.input_ids, row.input_ids)
        np.testing.assert_array_equal(found.rates, row.rates)
        np.testing.assert_array_equal(found.hidden[-1], row.hidden[-1])


def test_a_range_reads_no_shard_outside_it(store: Store) -> None:
    for part in ("labels", "hidden"):
        only(store, f"shards/00000/000000001-*.{part}.parquet").unlink()
    cache = open_cache(store.url)
    assert [row.sequence_id for row in [*cache.rows(stop=4), *cache.rows(start=8)]] == [0, 1, 2, 3, 8, 9]


def test_views_count_up_to_the_first_unsealed_one(store: Store) -> None:
    cache = open_cache(store.url)
    put_view(store, 2, random_units(2, identity()), identity())
    assert cache.num_views == 1
    with pytest.raises(UserError, match="view 1 is not sealed"):
        list(cache.rows(1))
    put_view(store, 1, random_units(1, identity()), identity())
    assert cache.num_views == 3
    assert len(list(cache.rows(1))) == NUM_SEQUENCES


def test_an_opened_cache_keeps_the_generation_that_it_first_read(store: Store) -> None:
    cache = open_cache(store.url)
    first = cache.manifest(0)
    only(store, "manifests/00000-00000.parquet").unlink()
    assert cache.manifest(0) is first


def test_a_manifest_of_another_cache_is_refused(store: Store, tmp_path: Path) -> None:
    other = Store(str(tmp_path / "other"))
    other_identity = identity(unit_sequences=99)
    put_view(other, 0, [make_rows(0, other_identity, [5], 0.5)], other_identity)
    shutil.copy(only(other, "manifests/*"), only(store, "manifests/*"))
    with pytest.raises(UserError, match=f"manifest of view 0 belongs to another cache .{other_identity.fingerprint}"):
        open_cache(store.url).manifest(0)


@pytest.mark.parametrize("part", ["labels", "hidden"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_flipped_bit_in_a_shard_is_never_read(store: Store, part: str, share: float) -> None:
    path = only(store, f"shards/00000/000000001-*.{part}.parquet")
    flip(path, int(share * path.stat().st_size))
    cache = open_cache(store.url)
    with pytest.raises(UserError, match=rf"{path.name} is damaged.*`teacher-cache verify {store.url}`"):
        list(cache.rows())
    assert len(list(cache.rows(stop=4))) == 4


def test_a_missing_shard_is_named(store: Store) -> None:
    path = only(store, "shards/00000/000000002-*.hidden.parquet")
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} is missing; run `teacher-cache verify"):
        list(open_cache(store.url).rows())


def test_labels_are_read_without_a_byte_of_hidden_states(store: Store) -> None:
    for path in Path(store.root).glob("shards/*/*.hidden.parquet"):
        path.unlink()
    cache = open_cache(store.url)
    rows = [row for entry in cache.manifest(0).shards for row in cache.open_shard(entry, layers=()).rows()]
    assert [row.hidden for row in rows] == [{}] * NUM_SEQUENCES


def test_a_cache_without_whole_teacher_says_so(store: Store) -> None:
    with pytest.raises(UserError, match="cache holds no whole teacher; run `teacher-cache build` again"):
        _ = open_cache(store.url).teacher


def teacher_row(folder: Path, spec: Identity) -> tuple[Row, torch.Tensor]:
    """What a saved teacher says at all positions of one sequence, as a row and as whole logits."""
    model = make_model()
    input_ids = torch.arange(2, 14)
    with torch.inference_mode():
        answer = model(input_ids=input_ids[None], output_hidden_states=True)
    logits = answer.logits[0]
    soft = keep_top(logits, top_k=spec.soft_labels.top_k, temperatures=spec.soft_labels.temperatures)
    row = Row(
        sequence_id=0,
        document_id=0,
        input_ids=input_ids.numpy().astype(np.int32),
        label_positions=np.array([], dtype=np.int64),
        label_ids=np.array([], dtype=np.int32),
        kept_positions=np.arange(12),
        rates=np.ones(12, dtype=np.float32),
        topk_ids=soft.topk_ids.numpy().astype(np.int32),
        topk_logits=soft.topk_logits.numpy(),
        rest_log_sum_exp={temperature: rest.numpy() for temperature, rest in soft.rest_log_sum_exp.items()},
        hidden={layer: answer.hidden_states[layer][0].numpy() for layer in spec.hidden.stored_layers},
    )
    return row, logits


def cache_of_teacher(tmp_path: Path, spec_: Identity) -> tuple[Cache, torch.Tensor]:
    store = Store(str(tmp_path / "taught"))
    spec.create_or_check(store, spec_, {})
    teacher = save_pretrained(tmp_path / "teacher")
    teacher_files.put(store, teacher, fingerprint=spec_.fingerprint, check=lambda _: None)
    row, logits = teacher_row(tmp_path / "teacher", spec_)
    put_view(store, 0, [[row]], spec_)
    return open_cache(store.url), logits


@pytest.mark.parametrize("layer", [-1, 4])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
def test_replay_rebuilds_the_teachers_whole_rows(tmp_path: Path, layer: int, temperature: float) -> None:
    """The last hidden states are layer -1, or layer 4 of a teacher with 4 layers; temperature 3 is not stored."""
    cache, logits = cache_of_teacher(tmp_path, identity(hidden={"layers": (0, layer), "code": "float32"}))
    (row,) = cache.rows()
    replayed = cache.replay(row, temperature)
    assert replayed.shape == (12, VOCAB_SIZE)
    np.testing.assert_allclose(replayed.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(replayed, (logits / temperature).softmax(-1).numpy(), atol=1e-5)


def test_replay_refuses_a_temperature_of_zero(store: Store) -> None:
    cache = open_cache(store.url)
    row = next(cache.rows())
    with pytest.raises(UserError, match="temperature must be above 0, it is 0"):
        cache.replay(row, 0)


@pytest.mark.parametrize("hidden", [{"layers": (-1,), "code": "none"}, {"layers": (0, 3), "code": "float32"}])
def test_replay_needs_the_last_hidden_states(tmp_path: Path, hidden: dict[str, object]) -> None:
    cache, _ = cache_of_teacher(tmp_path, identity(hidden=hidden))
    (row,) = cache.rows()
    with pytest.raises(UserError, match=r"stores no last hidden states: replay needs .*hidden.layers: \[-1\]"):
        cache.replay(row, 1.0)


def test_a_teacher_file_that_changed_is_refused(tmp_path: Path) -> None:
    cache, _ = cache_of_teacher(tmp_path, identity())
    flip(Path(cache.store.path("teacher/model.safetensors")), 5000)
    with pytest.raises(UserError, match=r"teacher/model.safetensors is damaged"):
        _ = cache.head


def test_a_committed_shard_is_what_readers_get(store: Store) -> None:
    """A second attempt's objects lie beside the first's, and nobody reads them."""
    units = random_units(5, identity())
    late = put_unit(store, 0, 0, units[0], identity())
    assert manifest.commit(store, 0, late, identity().fingerprint) != late
    first = next(open_cache(store.url).rows())
    np.testing.assert_array_equal(first.input_ids, random_units(0, identity())[0][0].input_ids)


def test_a_shard_entry_of_nothing_is_missing(store: Store) -> None:
    with pytest.raises(UserError, match=r"000000007-0000000000000000.labels.parquet is missing"):
        open_cache(store.url).open_shard(shard(7), layers=())
