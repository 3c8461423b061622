"""Results of fine-tuning → what a model is worth on each task beside its reference. Plain arithmetic."""

from student_train.finetune.plan import Plan, done_of
from student_train.finetune.records import Results
from student_train.finetune.results import Cell, cell, retention
from student_train.worth.records import Score


def scores_of(results: Results, model: str) -> dict[str, Score]:
    """A model's by task, without the tasks of which it has none."""
    found = {}
    for task in results.tasks:
        own, reference = cell(results, model, task.name), cell(results, results.reference, task.name)
        if own:
            low, high = _spread(own, reference)
            found[task.name] = Score(
                median=own.median,
                least=own.least,
                most=own.most,
                num_seeds=len(own.scores),
                is_finished=num_missing(results, model, task.name) == 0,
                retention=retention(results, model, task.name),
                retention_least=low,
                retention_most=high,
            )
    return found


def _spread(own: Cell, reference: Cell | None) -> tuple[float | None, float | None]:
    """Least and most retention over all pairs of a seed of each, so that it holds the luck of both."""
    if reference is None or reference.least <= 0:
        return None, None
    ratios = [100 * score / other for score in own.scores.values() for other in reference.scores.values()]
    return min(ratios), max(ratios)


def num_missing(results: Results, model: str, task: str) -> int:
    """Runs, of those known to be wanted, that have not ended."""
    done = done_of(run for run in results.runs if (run.model, run.task) == (model, task))
    plan = Plan(models=[model], tasks=[task], lrs=results.lrs, seeds=results.seeds)
    return sum(run not in done for run in plan.known(done))


def taught_tasks(results: Results, model: str) -> list[str]:
    """Those that a model learned from a teacher's cache, too."""
    taught = {run.task for run in results.runs if run.model == model and run.taught}
    return [task.name for task in results.tasks if task.name in taught]


def notes_of(results: Results) -> list[str]:
    """What is missing, and which figures therefore say less than they seem to."""
    found = []
    for model in results.models:
        cells = {task.name: cell(results, model.name, task.name) for task in results.tasks}
        if missing := [name for name, there in cells.items() if not there]:
            whose = "no average counts these" if model.name == results.reference else "its average is over the others"
            found.append(f"{model.name} has no score on {', '.join(missing)}: {whose}")
        few = {name: len(there.scores) for name, there in cells.items() if there}
        if lacking := [f"{name} ({number})" for name, number in few.items() if number < len(results.seeds)]:
            found.append(f"{model.name} has fewer than {len(results.seeds)} seeds on {', '.join(lacking)}")
        missing_runs = {name: num_missing(results, model.name, name) for name, there in cells.items() if there}
        if undone := [f"{name} ({number})" for name, number in missing_runs.items() if number]:
            found.append(f"{model.name} has runs yet to be made on {', '.join(undone)}: its scores may still change")
        if taught := taught_tasks(results, model.name):
            found.append(f"{model.name} learned {', '.join(taught)} from a fine-tuned teacher's cache, too")
    for task in results.tasks:
        reference = cell(results, results.reference, task.name)
        if reference and reference.median <= 0:
            found.append(f"{task.name}: the reference's score is not above 0, so there is no retention")
    return found
