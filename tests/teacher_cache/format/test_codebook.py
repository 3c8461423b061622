"""`codebook.safetensors`: one of each cache, and nothing taken on trust that it says."""

import json
import pickle
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from teacher_cache.errors import UserError
from teacher_cache.format import codebook, documents
from teacher_cache.format.coder import Coder
from teacher_cache.shell.settings import to_dict
from teacher_cache.storage.store import Store
from tests.teacher_cache.format.coded import HEAD, VOCABULARY, coded_identity, make_coder
from tests.teacher_cache.format.samples import identity
from tests.teacher_cache.test_hidden_code import make_head

SPEC = coded_identity(hidden={"layers": (2, -1), "code": "transform"})
GIGABYTE = 2**30


@pytest.fixture(scope="module")
def coder() -> Coder:
    return make_coder(SPEC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "cache"))


@pytest.fixture
def tensors(coder: Coder, tmp_path: Path) -> dict[str, torch.Tensor]:
    """What a whole file holds, to be spoilt."""
    whole = Store(str(tmp_path / "whole"))
    codebook.create(whole, coder.codebook)
    return safetensors.torch.load(whole.read(codebook.KEY, max_bytes=10**7))


SIZES = {"vocab_size": VOCABULARY}


def read(store: Store, **changes: Any) -> Coder:
    """As a reader of the cache does."""
    spec = coded_identity(**{"hidden": to_dict(SPEC.hidden)} | changes)
    return Coder(codebook=codebook.read(store, spec, **SIZES), head=HEAD)


def test_a_codebook_comes_back(store: Store, coder: Coder) -> None:
    codebook.create(store, coder.codebook)
    found = codebook.read(store, SPEC, **SIZES)
    assert found.sha256 == codebook.digest(store) == documents.sha256(Path(store.path(codebook.KEY)).read_bytes())
    assert found.labels is not None
    assert coder.codebook.labels is not None
    for name, values in coder.codebook.labels.tensors().items():
        np.testing.assert_array_equal(getattr(found.labels, name), values, strict=True)
    assert list(found.hidden) == [2, -1]
    for layer, code in coder.codebook.hidden.items():
        for name, expected in code.tensors().items():
            assert torch.equal(getattr(found.hidden[layer], name), expected), name


def test_the_first_one_put_stays(store: Store, coder: Coder) -> None:
    codebook.create(store, coder.codebook)
    digest = codebook.digest(store)
    codebook.create(store, make_coder(SPEC, seed=1).codebook)
    assert codebook.digest(store) == digest


@pytest.mark.parametrize(
    ("labels", "hidden", "needed"),
    [
        ("float32", "none", False),
        ("float32", "float16", False),
        ("float32", "float32", False),
        ("packed", "none", True),
        ("float32", "transform", True),
    ],
)
def test_only_codes_of_their_own_need_one(store: Store, labels: str, hidden: str, needed: bool) -> None:
    spec = identity(soft_labels={"code": labels}, hidden={"code": hidden})
    assert codebook.is_needed(spec) == needed
    if needed:
        with pytest.raises(UserError, match=r"cache has no codebook\.safetensors; run `teacher-cache build` again"):
            codebook.read(store, spec, **SIZES)
    else:
        assert codebook.read(store, spec, **SIZES) == codebook.Codebook()


def raw(header: dict[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file, whatever its header claims."""
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def claims(shape: list[int], *, dtype: str = "F32", num_bytes: int = 4) -> bytes:
    """A file of four bytes whose one tensor claims to be larger."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, num_bytes]}
    return raw({"labels.token_order": entry}, b"1234")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no safetensors",
        pickle.dumps({"labels.token_order": list(range(50))}),
        raw({})[:-1],
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        claims([2**40]),
        claims([2**40], num_bytes=2**42),
        claims([2**62, 2**62]),
        claims([4], dtype="F8_E8M0"),
        claims([4], dtype="unheard-of"),
        claims([2], dtype="BF16"),
        raw({"a": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}}),
        raw({"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
    ],
)
def test_bytes_that_are_no_codebook_are_refused_on_one_line(store: Store, data: bytes) -> None:
    store.create(codebook.KEY, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"cache/codebook\.safetensors is damaged: .") as error:
        read(store)
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIGABYTE / 1024, "kilobytes of memory taken"


@pytest.mark.parametrize("shape", [(), (0,), (0, 253), (2**60, 0)])
def test_tensors_of_nothing_are_refused(store: Store, tensors: dict[str, torch.Tensor], shape: tuple[int, ...]) -> None:
    for name, values in tensors.items():
        empty = torch.empty(shape, dtype=values.dtype)
        store.replace(codebook.KEY, safetensors.torch.save(tensors | {name: empty}))
        with pytest.raises(UserError, match="codebook"):
            read(store)


def test_an_object_larger_than_any_codebook_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook, "MAX_BYTES", 1000)
    store.create(codebook.KEY, bytes(1001))
    with pytest.raises(UserError, match=r"codebook\.safetensors .*1,?000"):
        read(store)


def changed(values: torch.Tensor, place: Any, value: float) -> torch.Tensor:
    values = values.clone()
    values[place] = value
    return values


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("labels.token_order", lambda x: x.long(), "token_order is missing or not int32"),
        ("labels.token_order", lambda x: x[:-1], "not of the teacher's 50 tokens"),
        ("labels.token_order", lambda x: changed(x, 0, int(x[1])), "no order of the vocabulary"),
        ("labels.token_order", lambda x: x + 1, "no order of the vocabulary"),
        ("labels.token_order", lambda x: x - 1, "no order of the vocabulary"),
        ("labels.rest_weights", lambda x: x.float(), "rest_weights is missing or not float64"),
        ("labels.rest_weights", lambda x: changed(x, (1, 2), torch.nan), "rest_weights are not finite"),
        ("labels.rest_weights", lambda x: x[:1], "rest_weights has shape"),
        ("labels.limits", lambda x: changed(x, 3, -1), "out of range"),
        ("labels.limits", lambda x: changed(x, 3, 232), "out of range"),
        ("labels.limits", lambda x: x[1:], "limits has shape"),
        ("labels.frequencies", lambda x: changed(x, (7, 0), 4095), "must add up to 4096"),
        ("labels.frequencies", lambda x: torch.zeros_like(x), "must add up to 4096"),
        ("labels.frequencies", lambda x: changed(x, (7, 0), -5), "out of range"),
        ("labels.frequencies", lambda x: x[None], "frequencies has shape"),
        ("hidden.2.predictor", lambda x: x.double(), r"predictor must be torch\.float32, 2 dim.* is torch\.float64"),
        ("hidden.2.predictor", lambda x: x[0, 0], "predictor must be .* 0 dimensions"),
        ("hidden.2.predictor", lambda x: x[:, 1:], "predictor has shape"),
        ("hidden.2.predictor", lambda x: changed(x, (0, 0), torch.inf), "predictor is not finite"),
        ("hidden.-1.forward", lambda x: x[1:], "forward has shape"),
        ("hidden.-1.forward", lambda x: changed(x, (1, 1), torch.nan), "forward is not finite"),
        ("hidden.-1.inverse", lambda x: x.to(torch.bfloat16), r"tensor of type 'BF16'"),
        ("hidden.-1.inverse", lambda x: x.to(torch.complex64), r"inverse must be torch\.float32"),
        ("hidden.2.deviations", lambda x: x[0], "deviations must be .* 0 dimensions"),
        ("hidden.2.deviations", lambda x: x[:-1], "predictor has shape"),
        ("hidden.2.scale_limits", lambda x: x[:-1], "scale_limits has shape"),
        ("hidden.2.bounds", lambda x: x.float(), r"bounds must be torch\.int64"),
        ("hidden.2.bounds", lambda x: x[:-1], "bounds has shape"),
        ("hidden.2.bounds", lambda x: changed(x, 0, 3), "bounds must be even numbers from 2 to 126"),
        ("hidden.2.bounds", lambda x: changed(x, 0, 0), "bounds must be even numbers from 2 to 126"),
        ("hidden.2.bounds", lambda x: changed(x, 0, 128), "bounds must be even numbers from 2 to 126"),
        ("hidden.2.frequencies", lambda x: x.float(), r"frequencies must be torch\.int32"),
        ("hidden.2.frequencies", lambda x: x[:-1], "frequencies has shape"),
        ("hidden.2.frequencies", lambda x: changed(x, (0, 0), 4096), "must add up to 4096"),
        ("hidden.2.frequencies", lambda x: changed(x, (0, slice(None)), 0), "must add up to 4096"),
    ],
)
def test_statistics_that_cannot_be_are_refused(
    store: Store, tensors: dict[str, torch.Tensor], name: str, spoil: Any, message: str
) -> None:
    store.create(codebook.KEY, safetensors.torch.save(tensors | {name: spoil(tensors[name]).contiguous()}))
    with pytest.raises(UserError, match=rf"cache/codebook\.safetensors is (refused|damaged): .*{message}"):
        read(store)


def test_each_missing_tensor_is_named(store: Store, tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        store.replace(codebook.KEY, safetensors.torch.save({k: value for k, value in tensors.items() if k != name}))
        with pytest.raises(UserError, match=rf"codebook: .*{name.rpartition('.')[2]}.* missing"):
            read(store)


def test_a_codebook_of_other_settings_is_refused(store: Store, coder: Coder) -> None:
    codebook.create(store, coder.codebook)
    labels = {"top_k": 4, "temperatures": (1.0,), "code": "packed"}
    with pytest.raises(UserError, match="rest_weights has shape"):
        read(store, soft_labels=labels)
    with pytest.raises(UserError, match="missing"):
        read(store, hidden={"layers": (3,), "code": "transform"})


def test_more_top_tokens_than_the_vocabulary_has_are_refused(store: Store) -> None:
    codebook.create(store, make_coder(coded_identity(top_k=VOCABULARY)).codebook)
    assert codebook.read(store, coded_identity(top_k=VOCABULARY), **SIZES).labels
    with pytest.raises(UserError, match="top_k is 51, the vocabulary has 50 tokens"):
        codebook.read(store, coded_identity(top_k=VOCABULARY + 1), **SIZES)


@pytest.mark.parametrize("head", [make_head(8), make_head(6, embedding_size=5)])
def test_a_codebook_of_another_teacher_is_refused(coder: Coder, head: Any) -> None:
    assert Coder(codebook=coder.codebook, head=HEAD)
    with pytest.raises(UserError, match=r"hidden\.2\.predictor has shape \(32, 6\), the teacher's makes it"):
        Coder(codebook=coder.codebook, head=head)
