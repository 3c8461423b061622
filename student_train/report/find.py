"""Folders and URLs that a user names → the runs there."""

from collections.abc import Iterable, Sequence

from student_train.run_folder import RUN_KEY
from teacher_cache.errors import UserError
from teacher_cache.storage.store import Store


def find_runs(places: Sequence[str]) -> list[Store]:
    """The runs at these places, each once, in the order given; of a folder that is no run, those directly below it.

    Raises:
        UserError: at one of the places there is no run.
    """
    stores = {store.url: store for place in places for store in _runs_at(Store(place))}
    return list(stores.values())


def _runs_at(place: Store) -> list[Store]:
    if place.exists(RUN_KEY):
        return [place]
    below = (Store(f"{place.url}/{name}") for name in _folder_names(place))
    runs = [store for store in below if store.exists(RUN_KEY)]
    if not runs:
        raise UserError(
            f"{place.url} holds no run of `student-train run`: there is no {RUN_KEY}, nor in any folder directly "
            "below; give a run's output, or a folder of such outputs"
        )
    return runs


def _folder_names(place: Store) -> list[str]:
    """Of the folders directly below a place, sorted; hidden ones are left out."""
    try:
        entries = place.attempt("listing", lambda: place.fs.ls(place.root, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = (str(entry["name"]).rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")
    return sorted(name for name in names if not name.startswith("."))


def short_names(urls: Iterable[str]) -> list[str]:
    """The shortest ends of URLs that tell them apart: their last parts, or more of them where these are the same."""
    parts = [url.split("/") for url in urls]
    depths = range(1, max(map(len, parts), default=0) + 1)
    tails = (["/".join(words[-depth:]) for words in parts] for depth in depths)
    return next((names for names in tails if len(set(names)) == len(names)), [])
