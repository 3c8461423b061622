"""What a cache keeps of its teacher: config.json, model.safetensors and the tokenizer's files."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_cache.errors import UserError
from teacher_cache.format import documents
from teacher_cache.format.objects import ObjectRef
from teacher_cache.format.store import Store, file_sha256

if TYPE_CHECKING:  # torch and transformers are loaded only by who asks for more than the names of files
    from teacher_cache.targets.heads import Family, OutputHead

MANIFEST_KEY = "teacher/manifest.json"


@dataclass(frozen=True)
class SavedTeacher:
    """A local folder with a teacher's files."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, with the family's own names."""
        values: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return values

    @cached_property
    def family(self) -> "Family":
        from teacher_cache.targets.heads import family_of

        return family_of(self.config)

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def num_layers(self) -> int:
        return int(self.config[self.family.num_layers])

    @property
    def hidden_size(self) -> int:
        return int(self.config[self.family.hidden_size])

    def read_head(self) -> "OutputHead":
        """The output head in float32; no other tensor is read."""
        import torch
        from safetensors import safe_open

        from teacher_cache.targets.heads import head_from_tensors

        with safe_open(self.folder / "model.safetensors", framework="pt") as tensors:
            return head_from_tensors(self.config, tensors.get_tensor).to(dtype=torch.float32)


def put(store: Store, folder: Path) -> None:
    """Copies a teacher's folder into the cache and seals it; does nothing where that is done."""
    if store.exists(MANIFEST_KEY):
        return
    files = []
    for path in sorted(folder.iterdir()):
        ref = ObjectRef(key=f"teacher/{path.name}", sha256=file_sha256(path), num_bytes=path.stat().st_size)
        # The digests of weights and tokenizer are in the fingerprint, so builders with the same transformers put the
        # same bytes.
        store.replace(ref.key, path.read_bytes())
        files.append(asdict(ref))
    store.create(MANIFEST_KEY, documents.dump({"files": files}))


def digest(store: Store) -> str:
    """SHA-256 of the list of teacher files, which names each file's own."""
    return documents.sha256(_manifest(store))


def fetch(store: Store) -> Path:
    """A local folder with the checked files, as `from_pretrained` takes it.

    Raises:
        UserError: a file is missing or damaged.
    """
    data = _manifest(store)
    document = documents.parse(data, name=f"{store.url}/{MANIFEST_KEY}")
    refs = [ObjectRef(**file) for file in document["files"]]
    local = [ref.fetch(store) for ref in refs]
    if store.is_local:
        return Path(store.path("teacher"))
    folder = store.disk_cache / f"teacher-{documents.sha256(data)[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    for ref, path in zip(refs, local, strict=True):
        _place(path, folder / ref.key.rsplit("/", 1)[1])
    return folder


def _manifest(store: Store) -> bytes:
    try:
        return store.read(MANIFEST_KEY, max_bytes=documents.MAX_DOCUMENT_BYTES)
    except FileNotFoundError:
        raise UserError(f"{store.url} holds no whole teacher; run `teacher-cache build` again") from None


def _place(source: Path, target: Path) -> None:
    """Puts a whole copy under a name, whoever else does the same."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)
