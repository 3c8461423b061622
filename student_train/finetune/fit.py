"""What only a model's own tokenizer can tell of a task and of its cache, told before the first run."""

from collections.abc import Iterable

from student_train.finetune.config import FinetuneConfig
from student_train.finetune.models import load_tokenizer
from student_train.finetune.plan import Run
from student_train.finetune.teacher_logits import read_logits
from student_train.saved_model import local_path
from teacher_cache.errors import UserError
from teacher_cache.tasks.question_answering import check_questions
from teacher_cache.tasks.task import features, load_task


def check_fit(config: FinetuneConfig, runs: Iterable[Run]) -> None:
    """Refuses runs whose questions leave no room for a context, or whose cache is not of what the model reads.

    Raises:
        UserError: names the task, the model, and the question or the cache.
    """
    wanted = {(run.model, run.task): config.distillation.caches.get(run.model, {}).get(run.task) for run in runs}
    for name, task_config in config.tasks.items():
        models = [model for model, task in wanted if task == name]
        if not models or not (task_config.layout == "squad" or any(wanted[model, name] for model in models)):
            continue
        task = load_task(name, task_config)
        for model in models:
            with local_path(config.models[model]) as folder:
                tokenizer = load_tokenizer(folder)
            try:
                if task.kind == "question_answering":
                    check_questions(task, tokenizer)
                if url := wanted[model, name]:
                    read_logits(url, task, features(task, "train", tokenizer), model)
            except UserError as error:
                raise UserError(f"task {name}, model {model}: {error}") from None
