"""Rows as students get them, against the losses that students compute from them."""

import pytest
import torch

from student_train.divergence import bucket_divergence, divergence
from teacher_cache.errors import UserError
from teacher_cache.fidelity.rebuilt import BucketedRows, RebuiltRows, ReplayedRows
from teacher_cache.targets.heads import OutputHead, head_logits, head_of
from teacher_cache.targets.soft_labels import SoftLabels, keep_top
from tests import families

K, TOP_K = 17, 8


@pytest.fixture(scope="module")
def head() -> OutputHead:
    return head_of(families.make_model())


def hidden_states(seed: int) -> torch.Tensor:
    return torch.randn(K, 32, generator=torch.Generator().manual_seed(seed))


def kept(head: OutputHead, top_k: int = TOP_K) -> tuple[torch.Tensor, SoftLabels]:
    with torch.no_grad():
        logits = head_logits(head, hidden_states(0))
        return logits, keep_top(logits, top_k=top_k, temperatures=(1.0, 2.0))


def rows_of(kind: str, head: OutputHead, soft: SoftLabels, temperature: float) -> RebuiltRows:
    with torch.no_grad():
        if kind == "bucket":
            return BucketedRows.of(soft, temperature)
        return ReplayedRows.of(hidden_states(0) + 0.1 * hidden_states(2), head, soft, temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("top_k", [TOP_K, families.VOCAB_SIZE])
@pytest.mark.parametrize("kind", ["bucket", "replay"])
class TestBoth:
    def test_the_target_has_the_gradient_of_the_student_s_loss(
        self, kind: str, top_k: int, temperature: float, head: OutputHead
    ) -> None:
        _, soft = kept(head, top_k)
        rows = rows_of(kind, head, soft, temperature)
        logits = torch.randn(K, families.VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
        if isinstance(rows, ReplayedRows):
            _, gradient = divergence(logits, rows.log_probabilities.clone(), temperature)
        else:
            _, gradient = bucket_divergence(logits, soft, temperature)
        student = (logits / temperature).softmax(-1)
        torch.testing.assert_close(student - rows.target(student), temperature * gradient, rtol=1e-4, atol=1e-6)

    def test_the_best_token_is_the_teacher_s(self, kind: str, top_k: int, temperature: float, head: OutputHead) -> None:
        logits, soft = kept(head, top_k)
        ids, confidences = rows_of(kind, head, soft, temperature).best()
        exact = (logits / temperature).softmax(-1)
        assert ids.tolist() == exact.argmax(-1).tolist()
        torch.testing.assert_close(confidences, exact.max(-1).values, rtol=1e-4, atol=1e-6)


class TestDivergence:
    def test_a_bucket_says_nothing_of_what_is_in_it(self, head: OutputHead) -> None:
        logits, soft = kept(head)
        rows = BucketedRows.of(soft, 2.0)
        exact = (logits / 2).log_softmax(-1)
        assert float(rows.kl(exact).max()) < 1e-10
        tail = torch.ones_like(exact, dtype=torch.bool).scatter(-1, soft.topk_ids, False)
        stirred = exact.clone()
        stirred[tail] = exact[tail].view(K, -1).flip(-1).flatten()
        assert float(rows.kl(stirred).max()) < 1e-10

    def test_a_bucket_of_another_mass_is_seen(self, head: OutputHead) -> None:
        logits, soft = kept(head)
        rest = {temperature: values + 0.1 for temperature, values in soft.rest_log_sum_exp.items()}
        heavier = SoftLabels(topk_ids=soft.topk_ids, topk_logits=soft.topk_logits, rest_log_sum_exp=rest)
        exact = (logits / 2).softmax(-1)
        top = exact.gather(-1, soft.topk_ids)
        dense = torch.cat([top, 1 - top.sum(-1, keepdim=True)], dim=-1)
        other = torch.cat([top, dense[:, -1:] * torch.tensor(0.1).exp()], dim=-1)
        expected = (dense * (dense / (other / other.sum(-1, keepdim=True))).log()).sum(-1)
        found = BucketedRows.of(heavier, 2.0).kl(exact.log())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)

    def test_replayed_rows_are_compared_whole(self, head: OutputHead) -> None:
        logits, soft = kept(head)
        rows = rows_of("replay", head, soft, 2.0)
        assert isinstance(rows, ReplayedRows)
        exact = (logits / 2).log_softmax(-1)
        plain = (exact.exp() * (exact - rows.log_probabilities)).sum(-1)
        torch.testing.assert_close(rows.kl(exact), plain, rtol=1e-3, atol=1e-6)
        assert float(plain.mean()) > 1e-4

    def test_a_bucket_at_another_temperature_is_refused(self, head: OutputHead) -> None:
        with pytest.raises(UserError, match=r"temperature that the cache stores \(1, 2\), not 3"):
            BucketedRows.of(kept(head)[1], 3.0)
