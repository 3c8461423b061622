"""Checkpoints: safetensors and JSON under `checkpoints/step-<n>/`; `state.json`, written last, completes one.

It lists digests and sizes of the other files, so a kill at any moment leaves either a whole checkpoint or one that no
restart believes.
"""

from dataclasses import asdict, dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from teacher_cache.errors import UserError
from teacher_cache.format import documents
from teacher_cache.storage.store import Store

KEPT_CHECKPOINTS = 2
"""The newest, and the one before it, in case a worker still reads it."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: enough to go on at the exact next sequence."""

    run: str
    """Digest of what the run learns from and how; another run's checkpoints are refused."""
    num_views: int
    """Views that the run reads in turn, fixed at its start."""
    step: int
    epoch: int
    sequences: int
    """Sequences of the epoch's global order that are consumed."""
    seconds: float
    """Training time so far."""
    manifests: list[list[str]] = field(default_factory=list)
    """SHA-256 of the manifests read so far, view by view, of each cache. A repair changes some, and not the run."""


Tensors = dict[str, torch.Tensor]


def save_checkpoint(store: Store, progress: Progress, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes a whole checkpoint, then drops all but the newest ones."""
    prefix = f"checkpoints/step-{progress.step:09d}"
    files = {"model.safetensors": save(model_tensors(model)), "optimizer.safetensors": save(_flat(optimizer))}
    for name, data in files.items():
        store.replace(f"{prefix}/{name}", data)
    listed = {name: {"sha256": documents.sha256(data), "num_bytes": len(data)} for name, data in files.items()}
    store.replace(f"{prefix}/state.json", documents.dump({"progress": asdict(progress), "files": listed}))
    # Later ones are torn: a run goes on from its newest whole one.
    whole = [key for key in store.list("checkpoints") if key <= prefix]
    for old in whole[:-KEPT_CHECKPOINTS]:
        store.delete_folder(old)


def newest_progress(store: Store) -> Progress | None:
    """The state of the newest whole checkpoint; None where there is none."""
    for prefix in reversed(store.list("checkpoints")):
        try:
            return Progress(**documents.read(store, f"{prefix}/state.json")["progress"])
        except FileNotFoundError:
            continue  # a kill came before the completion record
    return None


def load_checkpoint(store: Store, progress: Progress, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts a checkpoint's tensors into model and optimiser.

    Raises:
        UserError: a file is missing or does not match its digest.
    """
    prefix = f"checkpoints/step-{progress.step:09d}"
    state = documents.read(store, f"{prefix}/state.json")
    tensors = {name: _read(store, f"{prefix}/{name}", **listed) for name, listed in state["files"].items()}
    model.load_state_dict(tensors["model.safetensors"], strict=False)  # tied tensors are saved once
    _unflatten(tensors["optimizer.safetensors"], optimizer)


def _read(store: Store, key: str, *, sha256: str, num_bytes: int) -> Tensors:
    try:
        # Not a common bound for all: a local read takes the memory that it may fill at once.
        data = store.read(key, max_bytes=num_bytes)
        if documents.sha256(data) == sha256:
            return load(data)
    except (FileNotFoundError, SafetensorError):
        pass
    folder = key.rsplit("/", 1)[0]
    raise UserError(f"{store.url}/{key} is missing or damaged; delete {store.url}/{folder} to go on from an older one")


def model_tensors(model: torch.nn.Module) -> Tensors:
    """All parameters and buffers, tied ones once."""
    names = dict(model.named_parameters()) | dict(model.named_buffers())
    persistent = model.state_dict()
    return {name: tensor.detach().contiguous().cpu() for name, tensor in names.items() if name in persistent}


def _flat(optimizer: torch.optim.Optimizer) -> Tensors:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).contiguous().cpu()
        for index, entry in state.items()
        for name, value in entry.items()
    }


def _unflatten(tensors: Tensors, optimizer: torch.optim.Optimizer) -> None:
    state: dict[int, Tensors] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
