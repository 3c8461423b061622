"""The arithmetic of a plan, against figures worked out by hand."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from teacher_cache.config import CacheSpec
from teacher_cache.errors import UserError
from teacher_cache.plan.advice import advise, lower_quality
from teacher_cache.plan.costs import (
    Times,
    build_price,
    pays_after,
    student_epoch,
    wall_s,
    work,
)
from teacher_cache.plan.prices import Prices
from teacher_cache.plan.report import amount, hours, pays
from teacher_cache.plan.sizes import Counts, FileRates, Rates, num_objects, padded_tokens, reading, sizes
from teacher_cache.shell import settings
from teacher_cache.shell.command import number, size
from teacher_cache.storage.store import CHUNK_BYTES

COUNTS = Counts(
    num_files=2,
    num_views=3,
    unit_sequences=256,
    num_sequences=600,
    num_tokens=60_000,
    num_padded_tokens=64_000,
    num_labels=9_000.0,
    num_kept=14_000.0,
)
RATES = Rates(
    labels=FileRates(unit=100, block=10, kept=18, token=2),
    hidden=FileRates(unit=50, block=5, kept=105),
    sequences_token=1.5,
    sequences_file=400,
    sequences_manifest=1000,
    token_counts=0,
    codebook=500_000,
    teacher=90_000_000,
    num_teacher_objects=5,
    spec=2000,
    commit=700,
    manifest=3000,
    manifest_unit=90,
)
TIMES = Times(padded_token=1e-3, encoded=1e-4, head=5e-4, codebook=20.0, start=2.0, tokenise=6.0)
PRICES = {
    "currency": "EUR",
    "device_hour": 3.6,
    "storage_gb_month": 0.02,
    "puts_1000": 0.005,
    "gets_1000": 0.0004,
    "egress_gb": 0.09,
}


class TestSizes:
    def test_units_and_blocks(self) -> None:
        assert (COUNTS.num_units, COUNTS.num_blocks, COUNTS.num_sequence_parts) == (3, 5, 2)
        assert replace(COUNTS, unit_sequences=10).num_blocks == 60
        assert replace(COUNTS, num_sequences=256).num_blocks == 2

    def test_parts_by_hand(self) -> None:
        found = sizes(COUNTS, RATES)
        assert found.labels == 3 * (3 * 100 + 5 * 10 + 14_000 * 18 + 60_000 * 2)
        assert found.hidden == 3 * (3 * 50 + 5 * 5 + 14_000 * 105)
        assert found.sequences == 90_000 + 800 + 1000
        assert (found.codebook, found.teacher) == (500_000, 90_000_000)
        assert found.manifests_and_commits == 2000 + 3 * (3000 + 3 * 790)
        assert found.total == sum(asdict(found).values())
        assert found.shards == found.labels + found.hidden

    def test_objects_by_hand(self) -> None:
        """3 views of 3 units of 3 objects and a manifest; 5 of sequences; spec and codebook; 5 of the teacher."""
        assert num_objects(COUNTS, RATES) == 3 * (9 + 1) + 5 + 2 + 5
        without = replace(RATES, hidden=None, codebook=0, token_counts=7)
        assert num_objects(COUNTS, without) == 3 * (6 + 1) + 6 + 1 + 5

    def test_what_a_student_reads(self) -> None:
        labels, hidden = (RATES.labels.of_view(COUNTS), RATES.hidden.of_view(COUNTS) if RATES.hidden else 0)
        manifest = 3000 + 3 * 90
        both, one = (reading(COUNTS, RATES, with_hidden=wanted) for wanted in (True, False))
        assert (both.num_bytes, both.num_gets) == (labels + hidden + manifest, 3 + 3 + 1)
        assert (one.num_bytes, one.num_gets) == (labels + manifest, 3 + 1)
        large = replace(RATES, labels=FileRates(unit=CHUNK_BYTES + 1))
        assert reading(COUNTS, large, with_hidden=False).num_gets == 2 * 3 + 1

    def test_padding_is_that_of_sorted_micro_batches(self) -> None:
        lengths = [10, 2, 10, 2, 4, 4]
        assert padded_tokens(lengths, unit_sequences=4, batch_tokens=20) == 2 * 10 + 2 * 2 + 2 * 4
        assert padded_tokens(lengths, unit_sequences=6, batch_tokens=1000) == 6 * 10


class TestWork:
    def test_by_hand(self) -> None:
        found = work(COUNTS, TIMES)
        assert found.teacher_s == pytest.approx(3 * 64)
        assert found.encode_s == pytest.approx(3 * 1.4)
        assert found.build_s == pytest.approx(192 + 4.2 + 20)
        assert found.online_epoch_s == pytest.approx(64 + 46_000 * 5e-4)
        assert found.replay_epoch_s == pytest.approx(7)

    def test_wall_clock_is_in_whole_units_a_worker(self) -> None:
        """A unit takes (192 + 4.2) / 9 s; 9 units are 5 rounds of 2 workers, and 2 of 8."""
        unit_s = 196.2 / 9
        start_s = 6 / 2 + 2 + 22
        assert wall_s(COUNTS, TIMES, num_workers=2, cpus_per_worker=4) == pytest.approx(start_s + 2 + 5 * unit_s)
        assert wall_s(COUNTS, TIMES, num_workers=8, cpus_per_worker=1) == pytest.approx(start_s + 2 + 2 * unit_s)


class TestBreakEven:
    @pytest.mark.parametrize(
        ("build", "online", "cached", "epochs"),
        [(30, 12, 2, 3), (0, 1, 0, 0), (30, 2, 2, None), (30, 1, 2, None), (5, 10, 0, 0.5)],
    )
    def test_epochs(self, build: float, online: float, cached: float, epochs: float | None) -> None:
        assert pays_after(build=build, online_epoch=online, cached_epoch=cached) == epochs

    def test_in_device_time(self) -> None:
        done, read = work(COUNTS, TIMES), reading(COUNTS, RATES, with_hidden=True)
        replay, bucket = (student_epoch(way, done, read, build=None, prices=None) for way in ("replay", "bucket"))
        assert replay.pays_after_epochs == pytest.approx(216.2 / (87 - 7))
        assert bucket.pays_after_epochs == pytest.approx(216.2 / 87)
        assert (replay.price, bucket.device_s) == (None, 0)

    def test_in_money(self) -> None:
        prices = settings.parse(Prices, PRICES)
        done, read = work(COUNTS, TIMES), reading(COUNTS, RATES, with_hidden=True)
        build = build_price(done, num_bytes=5 * 10**9, num_objects=2000, prices=prices)
        assert (build.devices, build.puts, build.storage_month) == pytest.approx((0.2162, 0.01, 0.1))
        assert build.total == pytest.approx(0.3262)
        found = student_epoch("replay", done, read, build=build, prices=prices)
        assert found.price == pytest.approx(7 / 1000 * 0.0004 + read.num_bytes / 1e9 * 0.09 + 0.007)
        assert found.online_price == pytest.approx(0.087)
        assert found.pays_after_epochs == pytest.approx(0.3262 / (0.087 - found.price))

    def test_dear_egress_never_pays(self) -> None:
        prices = settings.parse(Prices, PRICES | {"egress_gb": 1000})
        done, read = work(COUNTS, TIMES), reading(COUNTS, RATES, with_hidden=True)
        build = build_price(done, num_bytes=10**9, num_objects=100, prices=prices)
        assert student_epoch("replay", done, read, build=build, prices=prices).pays_after_epochs is None

    def test_a_head_larger_than_its_encoder_never_pays_where_all_is_kept(self) -> None:
        """Rebuilding the rows costs what asking for them does."""
        done = work(replace(COUNTS, num_kept=60_000.0), replace(TIMES, head=0.01))
        read = reading(COUNTS, RATES, with_hidden=True)
        assert student_epoch("replay", done, read, build=None, prices=None).pays_after_epochs is None


class TestVerdict:
    @pytest.mark.parametrize(
        ("epochs", "told"),
        [
            (None, "replay: caching does not pay in device time"),
            (
                2.7,
                "replay: the cache is cheaper in device time after 2.70 student epochs: it pays with the first student",
            ),
            (3.1, "with student 2 of 3 epochs each; caching does not pay for fewer"),
        ],
    )
    def test_it_is_said_plainly(self, epochs: float | None, told: str) -> None:
        plan = {"num_views": 3, "build_price": None}
        assert told in pays({"way": "replay", "pays_after_epochs": epochs}, plan)

    def test_money_names_its_currency_and_storage(self) -> None:
        plan = {"num_views": 3, "build_price": {"currency": "EUR"}}
        told = pays({"way": "bucket", "pays_after_epochs": 1.0}, plan)
        assert told.startswith(
            "bucket: the cache is cheaper in EUR after 1.00 student epochs, 1 month of storage included"
        )

    def test_units_of_amounts(self) -> None:
        assert (size(999), size(1234), size(61_044_000_000)) == ("999 B", "1.234 kB", "61.04 GB")
        assert (size(999_600), size(999_960), size(2e18)) == ("999.6 kB", "1000 kB", "2,000 PB")
        assert [number(value) for value in (0.12345, 999.96, 1000.4, 16_000.0)] == [
            "0.1235",
            "1,000",
            "1,000",
            "16,000",
        ]
        assert (hours(90), hours(600), hours(36_000)) == ("90 s", "10 min", "10.0 h")
        assert (amount(1234.5, "EUR"), amount(0.000123), amount(0)) == ("1,234.50 EUR", "0.00012", "0.00")


class TestPrices:
    def load(self, folder: Path, text: str) -> Prices:
        path = folder / "prices.yaml"
        path.write_text(text)
        return settings.load(Prices, path)

    def test_a_file_is_read(self, tmp_path: Path) -> None:
        text = "\n".join(f"{name}: {value}" for name, value in PRICES.items())
        assert self.load(tmp_path, text) == Prices(**PRICES)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"devce_hour": 1}, "devce_hour: unknown key; valid keys here: currency, device_hour, storage_gb_month"),
            ({"egress_gb": -1}, r"egress_gb: Input should be greater than or equal to 0 \(got -1\)"),
            ({"puts_1000": "dear"}, r"puts_1000: Input should be a valid number"),
            ({"gets_1000": None}, r"gets_1000: Input should be a valid number"),
        ],
    )
    def test_what_is_no_price_is_refused(self, change: dict[str, Any], message: str, tmp_path: Path) -> None:
        text = "\n".join(
            f"{name}: {value if value is not None else 'null'}" for name, value in (PRICES | change).items()
        )
        with pytest.raises(UserError, match=message):
            self.load(tmp_path, text)

    def test_every_price_must_be_given(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="device_hour"):
            self.load(tmp_path, "currency: EUR\n")


class TestAdvice:
    def advised(self, counts: Counts = COUNTS, num_workers: int = 1, **changes: Any) -> dict[str, Any]:
        values = {"cache": "x", "corpus": {"paths": ["x"]}, "teacher": {"model": "x"}}
        found = advise(
            settings.parse(CacheSpec, values | changes), counts, RATES, TIMES, hidden_size=384, num_workers=num_workers
        )
        return {advice.setting: advice for advice in found}

    def test_each_is_what_the_same_arithmetic_says(self) -> None:
        found, planned = self.advised(), sizes(COUNTS, RATES)
        masked = replace(COUNTS, num_kept=9000.0)
        assert found["keep.unmasked=0"].num_bytes == sizes(masked, RATES).total
        assert found["keep.unmasked=0"].build_s == work(masked, TIMES).build_s
        assert found["views=2"].build_s == work(replace(COUNTS, num_views=2), TIMES).build_s
        assert found["hidden.code=none"].num_bytes == planned.total - planned.hidden
        assert found["soft_labels.top_k=4"].num_bytes == planned.total - 3 * 14_000 * 9

    def test_a_lower_quality_saves_bits_by_the_ratio_of_errors(self) -> None:
        """Measured on a real teacher of 384 dimensions, hidden states alone: 211.5 - 173.5, 155.9 - 105.7 and
        105.7 - 66.0 bytes a position (`infra/bench/RESULTS.md`)."""
        for name, measured in (("highest", 38.0), ("high", 50.2), ("standard", 39.7)):
            lower = lower_quality(name)
            assert lower is not None
            assert 384 * lower[1] / 8 == pytest.approx(measured, rel=0.03)
        assert lower_quality("low") is None
        saved = sizes(COUNTS, RATES).total - self.advised()["hidden.quality=low"].num_bytes
        assert saved / (3 * 14_000) == pytest.approx(39.7, rel=0.03)

    def test_padding_is_an_argument_for_packing(self) -> None:
        short = replace(COUNTS, num_sequences=6000)
        found = self.advised(short)["corpus.packing=full"]
        assert found.build_s < work(short, TIMES).build_s
        assert "corpus.packing=full" not in self.advised(short, corpus={"paths": ["x"], "packing": "full"})

    def test_idle_workers_get_smaller_units(self) -> None:
        found = self.advised(num_workers=10)
        assert "9 units leave 1 of 10 workers idle" in found["unit_sequences=45"].meaning
        assert not any(setting.startswith("unit_sequences") for setting in self.advised(num_workers=9))

    def test_many_small_shards_get_larger_units(self) -> None:
        many = replace(COUNTS, unit_sequences=1)
        found = self.advised(many)["unit_sequences=4"]
        assert found.num_objects < num_objects(many, RATES) / 3

    @pytest.mark.parametrize(("unit_sequences", "is_advised"), [(2**14, True), (2**15, False)])
    def test_no_larger_units_than_there_may_be_are_advised(self, unit_sequences: int, is_advised: bool) -> None:
        many = replace(COUNTS, num_sequences=2**24, unit_sequences=unit_sequences)
        assert (f"unit_sequences={4 * unit_sequences}" in self.advised(many)) == is_advised
