"""Which positions are masked and kept: a pure function of (seed, view, sequence id)."""

import math
import random
import subprocess
import sys
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teacher_cache.format.spec import KeepConfig, MaskingConfig
from teacher_cache.masking import MaskedSequence, Vocabulary, mask_sequence, rare_probabilities

CLS, SEP, MASK = 101, 102, 103
SPECIAL = (0, 100, CLS, SEP, MASK)
VOCABULARY = Vocabulary(size=1000, mask_id=MASK, special_ids=SPECIAL)
KEEP = KeepConfig()

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are shared
token_ids = st.lists(st.integers(0, VOCABULARY.size - 1), max_size=60).map(lambda ids: np.array([CLS, *ids, SEP]))
sequence_ids = st.integers(0, 2**40)
views = st.integers(0, 1000)
seeds = st.integers(0, 2**53 - 1)
one_in_n = st.integers(2, 50).map(lambda n: 1 / n)
maskings = st.one_of(
    st.builds(MaskingConfig, rate=st.floats(0.01, 0.99), seed=seeds),
    st.builds(MaskingConfig, rate=one_in_n, policy=st.just("strided"), seed=seeds),
)


def mask(
    ids: np.ndarray,
    sequence_id: int = 0,
    view: int = 0,
    masking: MaskingConfig | None = None,
    keep: KeepConfig = KEEP,
    vocabulary: Vocabulary = VOCABULARY,
) -> MaskedSequence:
    masking = masking or MaskingConfig()
    return mask_sequence(ids, sequence_id, view, masking=masking, keep=keep, vocabulary=vocabulary)


def corpus(num_sequences: int = 2000, length: int = 50) -> list[np.ndarray]:
    """`[CLS] … [SEP]` of ordinary tokens with a Zipf-like distribution: most are common, many are rare."""
    rng = np.random.default_rng(0)
    ordinary = VOCABULARY.ordinary_ids
    weights = 1 / np.arange(1, len(ordinary) + 1)
    drawn = rng.choice(ordinary, size=(num_sequences, length), p=weights / weights.sum())
    return [np.array([CLS, *row, SEP]) for row in drawn]


def as_bytes(masked: MaskedSequence) -> list[bytes]:
    return [values.dtype.str.encode() + values.tobytes() for values in astuple(masked)]


def assert_share(count: int, total: int, share: float) -> None:
    """Within five standard deviations of a binomial distribution."""
    assert abs(count - total * share) <= 5 * math.sqrt(total * share * (1 - share)), (count / total, share)


class TestWhatIsMasked:
    @unhurried
    @given(token_ids, sequence_ids, views, maskings)
    def test_special_tokens_are_never_masked(
        self, ids: np.ndarray, sequence_id: int, view: int, masking: MaskingConfig
    ) -> None:
        masked = mask(ids, sequence_id, view, masking)
        assert not np.isin(masked.label_ids, SPECIAL).any()
        is_special = np.isin(ids, SPECIAL)
        np.testing.assert_array_equal(masked.input_ids[is_special], ids[is_special])

    @unhurried
    @given(token_ids, sequence_ids, views, maskings)
    def test_labels_are_the_true_ids_and_all_else_is_unchanged(
        self, ids: np.ndarray, sequence_id: int, view: int, masking: MaskingConfig
    ) -> None:
        masked = mask(ids, sequence_id, view, masking)
        assert (np.diff(masked.label_positions) > 0).all()
        np.testing.assert_array_equal(masked.label_ids, ids[masked.label_positions])
        restored = masked.input_ids.copy()
        restored[masked.label_positions] = masked.label_ids
        np.testing.assert_array_equal(restored, ids)

    @unhurried
    @given(token_ids, sequence_ids, views, seeds)
    def test_random_replacements_are_never_special(
        self, ids: np.ndarray, sequence_id: int, view: int, seed: int
    ) -> None:
        masking = MaskingConfig(rate=0.9, mask_share=0, random_share=1, keep_share=0, seed=seed)
        masked = mask(ids, sequence_id, view, masking)
        assert not np.isin(masked.input_ids[masked.label_positions], SPECIAL).any()

    def test_random_replacements_are_any_ordinary_token(self) -> None:
        masking = MaskingConfig(rate=0.9, mask_share=0, random_share=1, keep_share=0)
        drawn = np.concatenate([mask(ids, i, masking=masking).input_ids for i, ids in enumerate(corpus(1000))])
        counts = np.bincount(drawn, minlength=VOCABULARY.size)[VOCABULARY.ordinary_ids[-400:]]  # rare in the corpus
        assert counts.min() > 0
        assert_share(int(counts.sum()), 1000 * 50, 0.9 * 400 / len(VOCABULARY.ordinary_ids))

    @pytest.mark.parametrize("rate", [0.05, 0.15, 0.4])
    def test_the_rate_is_met(self, rate: float) -> None:
        masking = MaskingConfig(rate=rate)
        found = sum(len(mask(ids, i, masking=masking).label_ids) for i, ids in enumerate(corpus()))
        assert_share(found, 2000 * 50, rate)

    @pytest.mark.parametrize("shares", [(0.8, 0.1, 0.1), (0.2, 0.5, 0.3)])
    def test_shares_of_mask_random_and_keep(self, shares: tuple[float, float, float]) -> None:
        masking = MaskingConfig(rate=0.3, mask_share=shares[0], random_share=shares[1], keep_share=shares[2])
        masked = [mask(ids, i, masking=masking) for i, ids in enumerate(corpus())]
        seen = np.concatenate([each.input_ids[each.label_positions] for each in masked])
        true = np.concatenate([each.label_ids for each in masked])
        same = shares[1] / len(VOCABULARY.ordinary_ids)  # a random token may be the true one
        assert_share(int((seen == MASK).sum()), len(seen), shares[0])
        assert_share(int((seen == true).sum()), len(seen), shares[2] + same)
        assert_share(int(((seen != MASK) & (seen != true)).sum()), len(seen), shares[1] - same)

    def test_every_place_of_a_sequence_is_masked_alike(self) -> None:
        places = np.concatenate([mask(ids, i).label_positions for i, ids in enumerate(corpus())])
        for count in np.bincount(places, minlength=52)[1:-1]:
            assert_share(int(count), 2000, 0.15)

    def test_a_sequence_of_special_tokens_has_no_labels(self) -> None:
        masked = mask(np.array([CLS, SEP]))
        assert masked.label_positions.size == masked.label_ids.size == 0


class TestPureFunction:
    def test_any_order_gives_the_same_bytes(self) -> None:
        ids = corpus(20)
        places = [(sequence_id, view) for sequence_id in range(20) for view in range(3)]
        first = {place: as_bytes(mask(ids[place[0]], *place)) for place in places}
        random.Random(0).shuffle(places)
        assert {place: as_bytes(mask(ids[place[0]], *place)) for place in places} == first

    def test_another_process_gives_the_same_bytes(self) -> None:
        code = (
            "from tests.teacher_cache.test_masking import as_bytes, corpus, mask\n"
            "print([as_bytes(mask(ids, i, 5)) for i, ids in enumerate(corpus(20))])"
        )
        printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        assert printed.strip() == str([as_bytes(mask(ids, i, 5)) for i, ids in enumerate(corpus(20))])

    @pytest.mark.parametrize("policy", ["uniform", "strided"])
    def test_views_sequences_and_seeds_differ(self, policy: str) -> None:
        ids = corpus(1)[0]
        variants = [
            mask(ids, sequence_id, view, MaskingConfig(policy=policy, seed=seed), KeepConfig(unmasked=0.5))  # type: ignore[arg-type]
            for sequence_id, view, seed in [(0, 0, 0), (0, 1, 0), (0, 7, 0), (1, 0, 0), (0, 0, 1), (2**40, 0, 0)]
        ]
        for name in ("input_ids", "label_positions", "kept_positions"):
            assert len({getattr(masked, name).tobytes() for masked in variants}) == len(variants)

    def test_what_is_kept_does_not_follow_what_is_masked(self) -> None:
        """One stream for both would keep exactly the masked positions at equal rates."""
        masked = [mask(ids, i, keep=KeepConfig(masked=0.5, unmasked=0.5)) for i, ids in enumerate(corpus())]
        kept_labels = sum(np.isin(each.label_positions, each.kept_positions).sum() for each in masked)
        assert_share(int(kept_labels), sum(len(each.label_positions) for each in masked), 0.5)

    def test_the_stream_is_what_caches_in_the_world_were_built_with(self) -> None:
        """If this fails, views of existing caches cannot be extended: raise the format version, or undo."""
        ids = np.array([CLS, *range(200, 230), SEP])
        masking = MaskingConfig(rate=0.3, mask_share=0.4, random_share=0.4, keep_share=0.2, seed=42)
        masked = mask(ids, 1234567, 2, masking, KeepConfig(unmasked=0.2))
        changed = {int(i): int(masked.input_ids[i]) for i in np.flatnonzero(masked.input_ids != ids)}
        assert masked.label_positions.tolist() == [1, 6, 8, 11, 15, 25, 27, 30]
        assert changed == {1: 766, 6: 103, 8: 103, 11: 237, 15: 867, 25: 103, 27: 132, 30: 103}
        assert masked.kept_positions.tolist() == [1, 6, 7, 8, 11, 12, 15, 19, 23, 25, 27, 28, 30]
        strided = mask(ids, 1234567, 9, MaskingConfig(policy="strided", seed=42))
        assert strided.label_positions.tolist() == [15, 24, 25, 27]


class TestRare:
    counts = st.lists(st.integers(0, 10**7), min_size=12, max_size=40).filter(lambda counts: sum(counts[5:]) > 0)

    @unhurried
    @given(counts, st.floats(0.01, 0.9))
    def test_the_expected_share_is_the_rate(self, counts: list[int], rate: float) -> None:
        special = (0, 1, 2, 3, 4)
        found = rare_probabilities(np.array(counts), rate, special)
        ordinary = np.array(counts, dtype=float)
        ordinary[list(special)] = 0
        assert (ordinary * found).sum() == pytest.approx(rate * ordinary.sum(), rel=1e-9)

    @unhurried
    @given(counts, st.floats(0.01, 0.9))
    def test_rarer_is_likelier_never_beyond_one_and_special_never(self, counts: list[int], rate: float) -> None:
        found = rare_probabilities(np.array(counts), rate, (0, 1, 2, 3, 4))
        assert found.max() <= 1
        assert not found[:5].any()
        present = sorted((count, p) for count, p in zip(counts[5:], found[5:], strict=True) if count)
        by_count = [p for _, p in present]
        assert by_count == sorted(by_count, reverse=True)

    def test_weights_are_the_published_power(self) -> None:
        found = rare_probabilities(np.array([0, 100, 10_000]), 0.01, (0,))
        assert found[1] / found[2] == pytest.approx(100**0.7)

    def test_rare_tokens_are_masked_more_and_the_whole_at_the_rate(self) -> None:
        sequences = corpus()
        counts = np.bincount(np.concatenate(sequences), minlength=VOCABULARY.size)
        probabilities = rare_probabilities(counts, 0.15, SPECIAL)
        vocabulary = Vocabulary(size=1000, mask_id=MASK, special_ids=SPECIAL, mask_probability=probabilities)
        masking = MaskingConfig(policy="rare")
        masked = [mask(ids, i, 0, masking, vocabulary=vocabulary) for i, ids in enumerate(sequences)]
        labels = np.bincount(np.concatenate([each.label_ids for each in masked]), minlength=VOCABULARY.size)
        assert_share(int(labels.sum()), 2000 * 50, 0.15)
        assert not labels[list(SPECIAL)].any()
        counts[list(SPECIAL)] = 0
        common, rare = counts > 1000, (counts > 0) & (counts < 50)
        for group in (common, rare):
            expected = (counts * probabilities)[group].sum() / counts[group].sum()
            assert_share(int(labels[group].sum()), int(counts[group].sum()), float(expected))
        assert labels[rare].sum() / counts[rare].sum() > 4 * labels[common].sum() / counts[common].sum()


class TestStrided:
    @unhurried
    @given(token_ids, sequence_ids, seeds, one_in_n, st.integers(0, 50))
    def test_each_position_is_masked_once_in_every_block_of_views(
        self, ids: np.ndarray, sequence_id: int, seed: int, rate: float, block: int
    ) -> None:
        num_views = round(1 / rate)
        masking = MaskingConfig(policy="strided", rate=rate, seed=seed)
        block_views = range(block * num_views, (block + 1) * num_views)
        masked = [mask(ids, sequence_id, view, masking).label_positions for view in block_views]
        np.testing.assert_array_equal(np.sort(np.concatenate(masked)), np.flatnonzero(~np.isin(ids, SPECIAL)))
        sizes = [len(positions) for positions in masked]
        assert max(sizes) - min(sizes) <= 1

    @pytest.mark.parametrize(("rate", "nearest"), [(0.4, "0.5"), (0.7, "0.5"), (0.29, "0.333")])
    def test_a_rate_that_is_far_from_one_in_n_is_refused(self, rate: float, nearest: str) -> None:
        with pytest.raises(ValueError, match=f"rate {rate:g} is none, use {nearest}"):
            MaskingConfig(policy="strided", rate=rate)

    def test_blocks_of_views_differ(self) -> None:
        ids, masking = corpus(1)[0], MaskingConfig(policy="strided", rate=0.25)
        assert mask(ids, 0, 0, masking).label_positions.tolist() != mask(ids, 0, 4, masking).label_positions.tolist()


class TestKeep:
    def test_masked_and_unmasked_are_kept_at_their_rates(self) -> None:
        masked = [mask(ids, i, keep=KeepConfig(masked=0.7, unmasked=0.1)) for i, ids in enumerate(corpus())]
        kept = [(np.isin(each.kept_positions, each.label_positions)) for each in masked]
        num_labels = sum(len(each.label_positions) for each in masked)
        assert_share(int(sum(is_label.sum() for is_label in kept)), num_labels, 0.7)
        assert_share(int(sum((~is_label).sum() for is_label in kept)), 2000 * 52 - num_labels, 0.1)

    def test_cls_and_sep_are_kept_as_unmasked_ones(self) -> None:
        masked = [mask(ids, i, keep=KeepConfig(masked=0, unmasked=0.3)) for i, ids in enumerate(corpus())]
        for place in (0, 51):
            assert_share(sum(place in each.kept_positions for each in masked), 2000, 0.3)

    @unhurried
    @given(token_ids, sequence_ids, st.floats(0, 1), st.floats(0.01, 1))
    def test_rates_say_how_each_was_kept(
        self, ids: np.ndarray, sequence_id: int, masked_rate: float, unmasked_rate: float
    ) -> None:
        masked = mask(ids, sequence_id, keep=KeepConfig(masked=masked_rate, unmasked=unmasked_rate))
        is_label = np.isin(masked.kept_positions, masked.label_positions)
        assert masked.rates.dtype == np.float32
        np.testing.assert_array_equal(masked.rates, np.where(is_label, masked_rate, unmasked_rate).astype(np.float32))
        assert (np.diff(masked.kept_positions) > 0).all()

    @unhurried
    @given(token_ids, sequence_ids, views)
    def test_one_keeps_all(self, ids: np.ndarray, sequence_id: int, view: int) -> None:
        masked = mask(ids, sequence_id, view, keep=KeepConfig(masked=1, unmasked=1))
        assert masked.kept_positions.tolist() == list(range(len(ids)))

    @unhurried
    @given(token_ids, sequence_ids, views)
    def test_zero_keeps_none_of_the_unmasked(self, ids: np.ndarray, sequence_id: int, view: int) -> None:
        masked = mask(ids, sequence_id, view, keep=KeepConfig(masked=1, unmasked=0))
        np.testing.assert_array_equal(masked.kept_positions, masked.label_positions)
