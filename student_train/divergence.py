"""What a student's logits cost and how to change them: loss and gradient of each row in one pass, without autograd.

A row of logits is 30,522 numbers, so what counts is how often memory is passed through: each function makes as few
buffers of `[n, V]` as it can, and works within them.

Legend: n positions, V vocabulary, k top tokens.
"""

import torch
from torch.nn import functional as F

from teacher_cache.targets.soft_labels import SoftLabels, bucket_log_probabilities

LossAndGradient = tuple[torch.Tensor, torch.Tensor]
"""Loss of each row `[n]`, in nats, and its gradient for the logits `[n, V]`, both float32."""


@torch.no_grad()
def divergence(logits: torch.Tensor, teacher_log_probabilities: torch.Tensor, temperature: float) -> LossAndGradient:
    """KL(teacher || student) between whole rows `[n, V]` at a temperature; uses up the teacher's rows."""
    student = logits.float() / temperature
    student -= student.logsumexp(dim=-1, keepdim=True)
    teacher = teacher_log_probabilities.exp()
    ratio = teacher_log_probabilities.sub_(student)
    loss = torch.linalg.vecdot(teacher, ratio)
    return loss, student.exp_().sub_(teacher).div_(temperature)


@torch.no_grad()
def bucket_divergence(logits: torch.Tensor, soft_labels: SoftLabels, temperature: float) -> LossAndGradient:
    """KL(teacher || student) over the top k tokens and one bucket for the rest, at a temperature.

    Its gradient spreads the rest's error by the student's own tail.
    """
    ids = soft_labels.topk_ids
    teacher = bucket_log_probabilities(soft_labels, temperature)
    student = logits.float() / temperature
    if not soft_labels.rest_log_sum_exp:
        return divergence(logits, torch.empty_like(student).scatter_(-1, ids, teacher), temperature)
    student -= student.amax(dim=-1, keepdim=True)
    top = student.gather(-1, ids)
    rest = student.exp_().scatter_(-1, ids, 0.0).sum(dim=-1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny)
    total = top.exp().sum(dim=-1, keepdim=True) + rest
    log_student = torch.cat([top, rest.log()], dim=-1) - total.log()
    loss = F.kl_div(log_student, teacher, reduction="none", log_target=True).sum(dim=-1)
    error = log_student.exp() - teacher.exp()
    student *= error[:, -1:] / rest
    return loss, student.scatter_(-1, ids, error[:, :-1]).div_(temperature)


@torch.no_grad()
def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> LossAndGradient:
    """-log probability of each label `[n]`."""
    student = logits.float()
    student = student - student.logsumexp(dim=-1, keepdim=True)
    loss = -student.gather(-1, labels[:, None])[:, 0]
    minus_one = torch.full((len(labels), 1), -1.0, device=logits.device)
    return loss, student.exp_().scatter_add_(-1, labels[:, None], minus_one)
