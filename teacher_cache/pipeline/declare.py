"""What decides a cache's content: its teacher loaded and checked, its spec written or compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from teacher_cache.config import CacheSpec, TeacherConfig
from teacher_cache.corpus.files import CorpusFile
from teacher_cache.errors import UserError
from teacher_cache.format import spec as spec_file
from teacher_cache.format import teacher_files
from teacher_cache.format.refusal import refusing
from teacher_cache.format.spec import CorpusIdentity, FileIdentity, Identity, TeacherIdentity
from teacher_cache.storage.disk_cache import disk_errors
from teacher_cache.storage.store import Store
from teacher_cache.storage.urls import redacted

if TYPE_CHECKING:  # torch is loaded only by who asks a teacher
    from teacher_cache.teacher import LoadedTeacher


def load_teacher(spec: CacheSpec) -> "LoadedTeacher":
    """Loads the teacher.

    Raises:
        UserError: it cannot teach, or not what is asked of it.
    """
    from teacher_cache import teacher as teachers

    loaded = teachers.load_teacher(spec.teacher.model, spec.teacher.revision)
    teachers.check_sequence_length(loaded.model.config, spec.corpus.sequence_length)
    teachers.check_hidden_layers(loaded.model.config, spec.hidden.stored_layers)
    teachers.check_top_k(loaded.model.config, spec.soft_labels.top_k)
    return loaded


def prepare_teacher(spec: CacheSpec, folder: Path) -> tuple[TeacherIdentity, str]:
    """Loads and checks the teacher; see `save_teacher`."""
    return save_teacher(load_teacher(spec), spec.teacher, folder)


def save_teacher(loaded: "LoadedTeacher", config: TeacherConfig, folder: Path) -> tuple[TeacherIdentity, str]:
    """Saves a teacher to `folder`; its identity, and its tokenizer's digest."""
    from teacher_cache import teacher as teachers

    with disk_errors(folder):
        teachers.save_teacher(loaded, folder)
    identity = TeacherIdentity(sha256=teachers.teacher_sha256(folder), dtype=config.dtype)
    return identity, teachers.tokenizer_sha256(loaded.tokenizer)


def identify(spec: CacheSpec, files: Sequence[CorpusFile], teacher: TeacherIdentity, tokenizer_digest: str) -> Identity:
    """All that decides the cache's content."""
    return Identity(
        objective=spec.objective,
        corpus=CorpusIdentity(
            files=tuple(FileIdentity(num_bytes=f.num_bytes, sha256=f.sha256, format=f.format) for f in files),  # type: ignore[arg-type]  # pydantic checks the format's name
            text_field=spec.corpus.text_field,
            sequence_length=spec.corpus.sequence_length,
            packing=spec.corpus.packing,
            tokenizer_sha256=tokenizer_digest,
        ),
        teacher=teacher,
        masking=spec.masking,
        keep=spec.keep,
        soft_labels=spec.soft_labels,
        hidden=spec.hidden,
        unit_sequences=spec.unit_sequences,
    )


def declare(store: Store, identity: Identity, teacher: TeacherConfig, urls: Sequence[str], folder: Path) -> None:
    """Writes spec and teacher, which lies in `folder`, into the store, or checks that the same are there."""
    notes = {
        "corpus": [redacted(url) for url in urls],
        "teacher": {"model": redacted(teacher.model), "revision": teacher.revision},
    }
    spec_file.create_or_check(store, identity, notes)

    def check(there: Path) -> None:
        from teacher_cache import teacher as teachers

        refusal = (
            f"{store.url}/teacher holds files of another teacher, or damaged ones; delete it and run the build again"
        )
        with refusing(f"{store.url}/teacher", refusal):
            tokenizer = teachers.load_teacher(str(there), objective=identity.objective).tokenizer
            found = teachers.teacher_sha256(there), teachers.tokenizer_sha256(tokenizer)
        if found != (identity.teacher.sha256, identity.corpus.tokenizer_sha256):
            raise UserError(refusal)

    teacher_files.put(store, folder, fingerprint=identity.fingerprint, check=check)
