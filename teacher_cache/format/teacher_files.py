"""What a cache keeps of its teacher: config.json, model.safetensors and the tokenizer's files."""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from teacher_cache.errors import UserError
from teacher_cache.format import documents, parquet
from teacher_cache.format.objects import ObjectRef
from teacher_cache.format.refusal import refusing
from teacher_cache.storage.disk_cache import disk_errors
from teacher_cache.storage.store import Store, file_sha256

if TYPE_CHECKING:  # torch and transformers are loaded only by who asks for more than the names of files
    from teacher_cache.targets.heads import Family, OutputHead

MANIFEST_KEY = "teacher/manifest.json"
REMEDY = "delete its folder teacher and run `teacher-cache build` again, which writes that anew"
MAX_SIZE = 2**24
"""Of a vocabulary, or a hidden size."""
_FILE = re.compile(r"teacher/[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class SavedTeacher:
    """A local folder with a teacher's files."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, with the family's own names.

        Raises:
            UserError: it is no JSON object.
        """
        path = self.folder / "config.json"
        with refusing(str(path), REMEDY):
            values = json.loads(path.read_bytes())
            if not isinstance(values, dict):
                raise UserError("it is no JSON object")
            return values

    @cached_property
    def family(self) -> "Family":
        from teacher_cache.targets.heads import family_of

        with refusing(str(self.folder / "config.json"), REMEDY):
            return family_of(self.config)

    @property
    def vocab_size(self) -> int:
        return self._size("vocab_size")

    @property
    def num_layers(self) -> int:
        return self._size(self.family.num_layers)

    @property
    def hidden_size(self) -> int:
        return self._size(self.family.hidden_size)

    def _size(self, field: str) -> int:
        found = self.config.get(field)
        if type(found) is not int or not 0 < found <= MAX_SIZE:
            wanted = f"it must be a whole number up to {MAX_SIZE:,}"
            raise UserError(f"{self.folder}/config.json has {field} {found!r}; {wanted}; {REMEDY}")
        return found

    def read_head(self) -> "OutputHead":
        """The output head in float32; no other tensor is read.

        Raises:
            UserError: the weights have none, or one of other sizes than the configuration says.
        """
        import torch
        from safetensors import safe_open

        from teacher_cache.targets.heads import check_sizes, head_from_tensors

        path = self.folder / "model.safetensors"
        name = f"{path} with its config.json"
        with refusing(name, REMEDY), safe_open(path, framework="pt") as tensors:
            head = head_from_tensors(self.config, tensors.get_tensor)
            check_sizes(head, hidden_size=self.hidden_size, vocab_size=self.vocab_size)
            return head.to(dtype=torch.float32)


def put(store: Store, folder: Path, *, fingerprint: str, check: Callable[[Path], None]) -> None:
    """Copies a teacher's folder into the cache of a fingerprint and seals it; does nothing where that is done.

    Builders with two versions of transformers write the same teacher in two ways, and the first of each file wins.
    Where other bytes are there, `check` is called with a folder of the files that will be listed; it raises if they are
    not of the same teacher.

    Raises:
        UserError: the teacher of another cache is sealed there, as where a `spec.json` was deleted and nothing else.
    """
    if store.exists(MANIFEST_KEY):
        sealed = documents.parse(_manifest(store), name=f"{store.url}/{MANIFEST_KEY}", remedy=REMEDY)
        if sealed.get("fingerprint", fingerprint) != fingerprint:
            raise UserError(
                f"{store.url} holds what was built of another cache (its teacher is that of {sealed['fingerprint']});"
                " delete all of it, or choose another URL"
            )
        return
    own = {f"teacher/{path.name}": path for path in sorted(folder.iterdir())}
    created = [store.create(key, path.read_bytes()) for key, path in own.items()]
    refs = [_ref(store, key, path, is_own) for (key, path), is_own in zip(own.items(), created, strict=True)]
    data = documents.dump({"fingerprint": fingerprint, "files": [asdict(ref) for ref in refs]})
    if not all(created):
        check(_place_all(store, refs, documents.sha256(data)))
    store.create(MANIFEST_KEY, data)


def _ref(store: Store, key: str, path: Path, is_own: bool) -> ObjectRef:
    """A file as it lies in the store; `path` has the same bytes if `is_own`."""
    if is_own:
        return ObjectRef(key=key, sha256=file_sha256(path), num_bytes=path.stat().st_size)
    data = store.read(key, max_bytes=2 * path.stat().st_size + documents.MAX_DOCUMENT_BYTES)
    return ObjectRef(key=key, sha256=documents.sha256(data), num_bytes=len(data))


def digest(store: Store) -> str:
    """SHA-256 of the list of teacher files, which names each file's own."""
    return documents.sha256(_manifest(store))


def fetch(store: Store) -> Path:
    """A local folder with the checked files, as `from_pretrained` takes it.

    Raises:
        UserError: a file is missing or damaged.
    """
    data = _manifest(store)
    return _place_all(store, _listed(data, f"{store.url}/{MANIFEST_KEY}"), documents.sha256(data))


def listed(store: Store) -> list[ObjectRef]:
    """The files that the teacher's manifest lists.

    Raises:
        UserError: it is missing or damaged.
    """
    return _listed(_manifest(store), f"{store.url}/{MANIFEST_KEY}")


def _place_all(store: Store, refs: Sequence[ObjectRef], digest: str) -> Path:
    """A local folder of checked files; `digest` is that of their list."""
    local = [ref.fetch(store, remedy=REMEDY) for ref in refs]
    if store.is_local:
        return Path(store.path("teacher"))
    folder = store.disk_cache / f"teacher-{digest[:16]}"
    with disk_errors(store.disk_cache):
        folder.mkdir(parents=True, exist_ok=True)
        for ref, path in zip(refs, local, strict=True):
            _place(path, folder / ref.key.rsplit("/", 1)[1])
    return folder


def _listed(data: bytes, name: str) -> list[ObjectRef]:
    """The files that a manifest lists, all of them in the teacher's own folder."""
    document = documents.parse(data, name=name, remedy=REMEDY)
    with refusing(name, REMEDY):
        refs = TypeAdapter(list[ObjectRef]).validate_python(document["files"])
        for ref in refs:
            if not _FILE.fullmatch(ref.key) or not parquet.PATTERNS["sha256"].fullmatch(ref.sha256):
                raise UserError(f"{ref.key!r} with SHA-256 {ref.sha256!r} is no file of a teacher")
        return refs


def _manifest(store: Store) -> bytes:
    try:
        return store.read(MANIFEST_KEY, max_bytes=documents.MAX_DOCUMENT_BYTES)
    except FileNotFoundError:
        raise UserError(f"{store.url} holds no whole teacher; run `teacher-cache build` again") from None


def _place(source: Path, target: Path) -> None:
    """Gives a file another name, whoever else does the same: no second copy of a teacher's weights."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # of a file system without hard links
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # where both were one file, renaming does nothing
