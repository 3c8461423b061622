"""The benchmark's rivals by properties that can be checked by hand, and whole small runs."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra.bench import outcome, rate_distortion
from infra.bench.codes import report, rivals
from infra.bench.codes.answers import Answers, States, rank
from infra.bench.codes.gradients import DenseRows, Deviations, ExactSums, Rows, SparseRows, Student
from infra.bench.codes.hidden_rivals import Int8, Rotated
from infra.bench.codes.measure import Measured
from infra.bench.codes.teaching import cross_entropy
from teacher_cache.fidelity.measures import GradientError, kl
from teacher_cache.targets.heads import OutputHead, head_logits, head_of
from tests import families

VOCABULARY = families.VOCAB_SIZE
BERT_VOCABULARY = 30_522
WHOLE = slice(None)


@pytest.fixture(scope="module")
def head() -> OutputHead:
    return head_of(families.make_model()).to(dtype=torch.float32)


@pytest.fixture(scope="module")
def answers(head: OutputHead) -> Answers:
    return ask(head, torch.randn(40, 32, generator=torch.Generator().manual_seed(1)))


def ask(head: OutputHead, hidden: torch.Tensor) -> Answers:
    """What a teacher of these last hidden states says."""
    states = States(
        hidden=hidden,
        early=hidden.flip(0),
        is_masked=torch.ones(len(hidden), dtype=torch.bool),
        token_ids=torch.zeros(len(hidden), 3, dtype=torch.int64),
    )
    return rank(states, head, torch.Generator().manual_seed(2), draw_at=(1.0, 2.0))


def exact_rows(answers: Answers, head: OutputHead, temperature: float) -> torch.Tensor:
    with torch.no_grad():
        return (head_logits(head, answers.states.hidden) / temperature).softmax(dim=-1)


def rows_of(codec: rivals.TopK | rivals.RandomSampling | rivals.DistillKit, answers: Answers, at: float) -> SparseRows:
    rows = codec.encode(answers).rows(WHOLE, at)
    assert isinstance(rows, SparseRows)
    return rows


def random_student(num_positions: int, seed: int = 3) -> torch.Tensor:
    return (2 * torch.randn(num_positions, VOCABULARY, generator=torch.Generator().manual_seed(seed))).softmax(dim=-1)


def test_distillkit_takes_its_published_bytes() -> None:
    assert rivals.recommended(BERT_VOCABULARY, normalize_t=False, tail="zero").bytes_per_position == 296
    assert rivals.budget(BERT_VOCABULARY, normalize_t=False, tail="zero").bytes_per_position == 108


@pytest.mark.parametrize(("spread", "expected"), [("none", 31), ("uniform", 33), ("student", 33)])
def test_a_raw_top_8_takes_31_bytes_and_2_for_the_rest(spread: str, expected: int) -> None:
    assert rivals.TopK(8, spread, BERT_VOCABULARY).bytes_per_position == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("normalize_t", [False, True])
def test_distillkits_curve_is_exact_where_log_probabilities_lie_on_one(normalize_t: bool) -> None:
    codec = rivals.budget(BERT_VOCABULARY, normalize_t=normalize_t, tail="zero")
    ranks = torch.linspace(0, 1, 49)
    curves = torch.stack([-3 - ranks - ranks.sqrt(), -5 - 2 * ranks])
    values = torch.cat([torch.tensor([[-0.5], [-1.0]]), curves], dim=-1)
    torch.testing.assert_close(codec.round_trip(values), values, atol=2e-4, rtol=0)


def test_high_powers_of_unnormalised_ranks_cost_truth_in_float32() -> None:
    values = -torch.linspace(1, 12, 128).sqrt().repeat(4, 1)
    errors = [
        (rivals.recommended(BERT_VOCABULARY, normalize_t=on, tail="zero").round_trip(values) - values)[:, 16:]
        .abs()
        .mean()
        for on in (False, True)
    ]
    assert errors[0] > 3 * errors[1]


def test_random_samples_are_unbiased_at_their_temperature(head: OutputHead) -> None:
    hidden = torch.randn(1, 32, generator=torch.Generator().manual_seed(4)).repeat(2000, 1)
    said = ask(head, hidden)
    for temperature in (1.0, 2.0):
        rows = rows_of(rivals.RandomSampling(50, temperature), said, temperature)
        target = rows.target(random_student(2000)).mean(dim=0)
        torch.testing.assert_close(target, exact_rows(said, head, temperature)[0], atol=0.006, rtol=0)


def test_samples_take_three_bytes_a_unique_token(answers: Answers) -> None:
    drawn = torch.tensor([[7, 7, 9, 7], [1, 2, 3, 4]])
    assert rivals.unique_per_row(drawn).tolist() == [2, 4]
    few = replace(answers[:2], drawn_ids={1.0: drawn}, drawn_logits={1.0: drawn.float()})
    assert rivals.RandomSampling(4, 1.0).encode(few).num_bytes == 18


def test_samples_have_no_target_below_their_temperature(answers: Answers) -> None:
    assert rivals.RandomSampling(50, 2.0).encode(answers).rows(WHOLE, 1.0) is None


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("spread", ["none", "uniform", "student"])
def test_targets_of_a_top_k_sum_to_one(answers: Answers, head: OutputHead, spread: str, temperature: float) -> None:
    rows = rows_of(rivals.TopK(8, spread, VOCABULARY), answers, temperature)  # type: ignore[arg-type]
    target = rows.target(random_student(len(answers)))
    torch.testing.assert_close(target.sum(dim=-1), torch.ones(len(answers)))
    if spread != "none":
        exact = exact_rows(answers, head, temperature).gather(-1, rows.ids)
        torch.testing.assert_close(target.gather(-1, rows.ids), exact, atol=2e-3, rtol=2e-2)


def test_a_bucket_leaves_a_perfect_student_alone(answers: Answers, head: OutputHead) -> None:
    exact = exact_rows(answers, head, 2.0)
    target = rows_of(rivals.TopK(8, "student", VOCABULARY), answers, 2.0).target(exact)
    torch.testing.assert_close(target, exact, atol=2e-3, rtol=2e-2)


def test_distillkit_takes_what_is_missing_for_one_token(answers: Answers) -> None:
    codec = rivals.DistillKit(
        setting="small",
        top_k=6,
        exact_k=6,
        terms=(0,),
        normalize_t=True,
        tail="symmetric_uniform",
        vocab_size=VOCABULARY,
    )
    codec = replace(codec, top_k=7)
    rows = rows_of(codec, answers, 2.0)
    kept = rows_of(codec, answers, 1.0)
    torch.testing.assert_close(kept.probabilities.sum(dim=-1) + kept.rest, torch.ones(len(answers)))
    roots = torch.cat([kept.probabilities, kept.rest[:, None]], dim=-1).sqrt()
    torch.testing.assert_close(rows.probabilities, (roots / roots.sum(dim=-1, keepdim=True))[:, :-1])


def test_int8_is_within_half_a_step() -> None:
    hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(5)) * torch.logspace(-2, 2, 50)[:, None]
    steps = hidden.abs().amax(dim=-1, keepdim=True) / 127
    assert ((Int8(32).round_trip(hidden) - hidden).abs() <= 0.57 * steps).all()
    assert Int8(384).bytes_per_position == 386


def test_more_bits_of_rotated_states_are_truer() -> None:
    draw = torch.Generator().manual_seed(6)
    hidden = torch.randn(500, 16, generator=draw) @ torch.randn(16, 16, generator=draw) + 3
    codes = [Rotated.fit(hidden, bits) for bits in (2, 3, 4)]
    losses = [float((code.round_trip(hidden) - hidden).square().mean() / hidden.var()) for code in codes]
    # Of a Gaussian, by optimal uniform quantisers (Max 1960).
    assert losses == pytest.approx([0.119, 0.0374, 0.0115], rel=0.1)
    assert [code.bytes_per_position for code in codes] == [4, 6, 8]


def all_rows(answers: Answers, head: OutputHead, temperature: float) -> list[Rows]:
    """Targets of every kind."""
    rough = head_logits(head, answers.states.hidden.half().float() + 0.01).detach() / temperature
    sparse = [rivals.TopK(8, spread, VOCABULARY) for spread in ("none", "uniform", "student")]  # type: ignore[arg-type]
    others = [
        rivals.RandomSampling(20, 1.0),
        rivals.budget(VOCABULARY, normalize_t=True, tail="symmetric_uniform"),
    ]
    return [
        DenseRows(log_probabilities=rough.log_softmax(dim=-1)),
        *(rows_of(codec, answers, temperature) for codec in [*sparse, *others]),
    ]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_deviations_are_those_of_dense_targets(answers: Answers, head: OutputHead, temperature: float) -> None:
    exact, student = exact_rows(answers, head, temperature), random_student(len(answers))
    hidden, size = answers.states.early, (VOCABULARY, 32)
    for rows in all_rows(answers, head, temperature):
        sums, deviations, expected = ExactSums(("one",), *size), Deviations(("one",), *size), GradientError(*size)
        sums.add(exact, {"one": Student(student, hidden)})
        deviations.add(rows, exact, {"one": Student(student, hidden)})
        expected.add(student, exact, rows.target(student), hidden)
        assert deviations.error("one", sums) == pytest.approx(expected.result().error, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_students_are_taught_towards_the_targets(answers: Answers, head: OutputHead, temperature: float) -> None:
    logits = (3 * torch.randn(len(answers), VOCABULARY, generator=torch.Generator().manual_seed(8))).requires_grad_()
    for rows in all_rows(answers, head, temperature):
        (gradient,) = torch.autograd.grad(cross_entropy(rows, logits, temperature).sum(), logits)
        student = (logits.detach() / temperature).softmax(dim=-1)
        target = rows.target(student)
        pulled = target.sum(dim=-1, keepdim=True) * student - target
        torch.testing.assert_close(gradient * temperature, pulled, atol=2e-6, rtol=1e-4)


def test_only_whole_rows_have_a_divergence(answers: Answers, head: OutputHead) -> None:
    exact = exact_rows(answers, head, 1.0)
    dense, renormalised, uniform, bucket = all_rows(answers, head, 1.0)[:4]
    assert renormalised.kl(exact) is None
    assert bucket.kl(exact) is None
    for rows in (dense, uniform):
        torch.testing.assert_close(rows.kl(exact), kl(exact, rows.target(exact).log()))


def measured(name: str, num_bytes: float, error: float, family: str = "rival") -> Measured:
    return Measured(
        name=name,
        family=family,
        hidden_bytes=0,
        label_bytes=num_bytes,
        kept_bytes=num_bytes,
        cosine=None,
        errors={("late", 1.0, 64): error},
        kl={},
    )


def test_ratios_interpolate_between_logarithms() -> None:
    ours = [measured("a", 40, 0.1, "ours"), measured("b", 160, 0.001, "ours"), measured("worse", 200, 0.1, "ours")]
    others = [measured("between", 100, 0.01), measured("bad", 80, 0.5), measured("too good", 300, 1e-5)]
    assert report.ratios([*ours, *others]) == pytest.approx({"between": 0.8, "bad": 0.5})


def test_budgets_say_whether_ours_is_below_every_rival() -> None:
    rows = report.budgets([measured("ours", 50, 0.1, "ours"), measured("small", 30, 0.3), measured("large", 90, 0.05)])
    found = {row.num_bytes: (row.best, row.ours_is_below_all) for row in rows}
    assert found[40] == ("small", False)
    assert found[60] == ("ours", True)
    assert found[100] == ("large", False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of both programs: a tiny teacher, and two texts of its words."""
    folder, draw = tmp_path_factory.mktemp("bench"), random.Random(0)
    families.save_pretrained(folder / "teacher")
    for name, lines in (("fit", 400), ("text", 150)):
        text = "\n\n".join(" ".join(draw.choices(families.WORDS, k=50)) for _ in range(lines))
        (folder / f"{name}.txt").write_text(text)
    options = {"teacher": folder / "teacher", "fit": folder / "fit.txt", "text": folder / "text.txt"}
    return [word for name, path in options.items() for word in (f"--{name}", str(path))]


def test_a_small_comparison_from_end_to_end(inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_distortion, "QUICK_TRANSFORMS", ((0.99, 8), (0.9999, 8)))
    monkeypatch.setattr(rate_distortion, "QUICK_TOP_KS", (8, 32))
    plot = tmp_path / "plot.png"
    found, table = rate_distortion.run(rate_distortion.parse([*inputs, "--quick", "--plot", str(plot)]))
    assert json.loads(json.dumps(found))["name"] == "rate_distortion"
    errors = {row["label"]: {e["student"]: e["error"] for e in row["gradient_errors"]} for row in found["figures"]}
    assert all(error > 0 for by_student in errors.values() for error in by_student.values())
    assert errors["float16 hidden, replay"]["early"] < errors["int8 hidden, replay"]["early"] < 0.05
    assert errors["ours: cosine 0.9999, k = 8, replay"]["early"] < errors["ours: cosine 0.99, k = 8, replay"]["early"]
    sizes = {row["label"]: row["bytes"] for row in found["figures"]}
    assert sizes["ours: bucket, k = 8"] < sizes["top-8 bucket"]
    assert all(name in table for name in sizes)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_small_students_from_end_to_end(inputs: list[str], tmp_path: Path) -> None:
    save = tmp_path / "so-far.json"
    arguments = outcome.parse([*inputs, "--quick", "--seeds", "1", "--save", str(save)])
    found = outcome.run(arguments)
    assert json.loads(save.read_text()) == json.loads(json.dumps(found))
    losses = {row["arm"]: row["loss"] for row in found["figures"]}
    assert len(losses) >= 10
    exact = next(row for row in found["figures"] if row["arm"] == "exact rows + cosine")
    int8 = next(row for row in found["figures"] if row["arm"] == "int8 hidden, replay + cosine")
    assert int8["kl"] == pytest.approx(exact["kl"], abs=1e-3)
    assert exact["kl_gap"] == 0
    assert "untaught" in outcome.render(found["figures"])
