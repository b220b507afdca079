"""`evomerge.merge` writes the checkpoint of a recipe, one tensor after the other."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.identity import check_unchanged
from evomerge.checkpoints.pickled import with_pickles
from evomerge.checkpoints.write import (
    SHARD_BYTES,
    CheckpointWriter,
    TensorLayout,
    check_space,
    check_target,
    real_folder,
)
from evomerge.errors import InputError, TrialError, Where
from evomerge.merging.disk.as_adapter import write_as_adapter
from evomerge.merging.disk.documents import Documents
from evomerge.merging.disk.doubts import doubts
from evomerge.merging.disk.loadable import check_loads
from evomerge.merging.disk.origin import Origin
from evomerge.merging.disk.pipeline import StreamingBank, run_in_order
from evomerge.merging.disk.record import Options
from evomerge.merging.disk.upload import Upload
from evomerge.merging.kernels.digest import NotFinite, combined, digest, tensor_record
from evomerge.merging.plan.jobs import MergeJob, MergePlan
from evomerge.merging.plan.plan import plan
from evomerge.merging.plan.tokenizers import output_tokenizer, side_files
from evomerge.merging.resident.bank import torch_dtype
from evomerge.merging.resident.execute import not_finite, write
from evomerge.merging.resident.factor_cache import FactorCache
from evomerge.recipe.mergekit import read_recipe, write_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.safety.names import check_name

MOST_THREADS = 4096
_FEEDING = 2  # threads that read for a GPU
Progress = Callable[[str, float], None]


@with_pickles
def merge(
    recipe: Path | str | Recipe,
    out: Path | str,
    *,
    device: str = "cpu",
    threads: int | None = None,
    seed: int | None = None,
    intermediate: Path | str | None = None,
    truncate_embeddings: bool = False,
    mix_types: bool = False,
    copy_tokenizer: bool = True,
    model_card: bool = True,
    overwrite: bool = False,
    allow_pickle: bool = False,
    shard_bytes: int = SHARD_BYTES,
    push_to_hub: str | None = None,
    public: bool = False,
    as_adapter: bool = False,
    rank: int | None = None,
    origin: Origin | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Path:
    """Merge to disk. Takes a gigabyte of memory, or the tensors that the largest output tensor reads.

    Args:
        recipe: a recipe, or the path of its file.
        out: the folder to write; it appears when it is whole.
        device: where the arithmetic is done: "cpu", "cuda", "cuda:1".
        threads: how many processor threads compute; default: as torch is set.
        seed: the seed of random masks, in place of the recipe's.
        intermediate: a folder for the outputs of the named documents, which are written there under their names, and
            nowhere else. They and `out` appear when all are whole.
        truncate_embeddings: merge embeddings of different size over the rows that all have (see `plan`).
        mix_types: merge models of different types whose tensors have the same names and shapes (see `plan`).
        copy_tokenizer: write the tokenizer's files.
        model_card: write README.md.
        overwrite: replace checkpoints that exist (see `check_target`).
        allow_pickle: read pickled weights, too, where a model has no others (see `checkpoints/pickled.py`).
        shard_bytes: the most bytes of a weights file.
        push_to_hub: also upload the checkpoint, to a new repository of this name: private, unless `public`.
        as_adapter: write a LoRA adapter of the base, of this `rank`, in place of a checkpoint. `note` is told how much
            of the change it lacks.
        origin: the search that the recipe comes from; `evomerge.export` tells it.
        progress: called with a text (tensor, rate, remaining time) and the share that is done (0 to 1).
        note: called, before the first tensor is merged, with lines on what not all models of the merge store, on
            deltas that are too large for DARE, on licences, and on where it was pushed to.

    Returns:
        The absolute folder.

    Raises:
        InputError: the recipe or a checkpoint is wrong, a target cannot be written, or the disk is full. Nothing was
            written then.
    """
    upload = Upload.checked(push_to_hub, public)
    if threads is not None:
        if not 1 <= threads <= MOST_THREADS:
            mend = f"give a number from 1 to {MOST_THREADS}"
            raise InputError(f"{threads} threads cannot compute", mend, Where("--num-threads"))
        torch.set_num_threads(threads)
    file = None if isinstance(recipe, Recipe) else Path(recipe)
    whole = recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe))
    whole.check_places()
    if seed is not None:
        if not 0 <= seed < 2**63:
            raise InputError(f"{seed} is no seed", "give a whole number from 0 to 2^63 - 1", Where("--random-seed"))
        whole = Recipe(tuple(replace(document, seed=seed) for document in whole.documents))
    if rank is not None and not as_adapter:
        raise InputError("a checkpoint has no rank", "add --as-adapter, or leave --rank out", Where("--rank"))
    if as_adapter:
        if intermediate is not None or truncate_embeddings or mix_types:
            problem = "an adapter has its base's form, and nothing beside it"
            raise InputError(problem, "leave out the other options", Where("--as-adapter"))
        folder = Path(out).absolute()
        write_as_adapter(whole, folder, rank, device=device, overwrite=overwrite, progress=progress, note=note)
        _push(upload, folder, note)
        return folder
    origin = origin or Origin()
    given = file.read_text(encoding="utf-8") if file and seed is None else None
    text = origin.text or given or write_recipe(whole, origin.header)
    where, target, bank = Where(file) if file else None, Path(out).absolute(), StreamingBank(FactorCache())
    stages = {} if intermediate is None else _stages(whole, Path(intermediate).absolute())
    outputs = [_Output(folder, stage, write_recipe(stage)) for folder, stage in stages.items()]
    outputs.append(_Output(target, whole, text))
    _check_apart(outputs)
    for output in outputs:
        check_target(output.folder, overwrite)
    plans = [plan(output.recipe, bank.open, truncate_embeddings, mix_types) for output in outputs]
    read = [c for planned in plans for c in planned.checkpoints]
    inputs = [*(c.path for c in read), *(f for c in read for f in c.files()), *([file] if file else [])]
    inputs += [planned.vocabulary.folder for planned in plans]
    for output in outputs:
        check_target(output.folder, overwrite, inputs=inputs)
    small = [
        output_tokenizer(output.recipe.output, planned, where).files if copy_tokenizer else side_files(planned, where)
        for output, planned in zip(outputs, plans, strict=True)
    ]
    options = Options(truncate_embeddings, mix_types, copy_tokenizer, shard_bytes, torch.device(device).type)
    documents = [
        Documents(output.folder, output.recipe, output.text, planned, options, model_card, origin)
        for output, planned in zip(outputs, plans, strict=True)
    ]
    for planned, output, told in zip(plans, outputs, documents, strict=True):
        looked = (check_loads(planned, where), doubts(output.recipe, planned.checkpoints), told.warnings)
        for line in (*planned.notes, *(line for lines in looked for line in lines)):
            if note:
                note(line)
    with ExitStack() as stack:
        # The last one that is entered is the first one to take its place: the output comes after the stages.
        writers = [
            stack.enter_context(CheckpointWriter(o.folder, _layout(p), shard_bytes=shard_bytes, overwrite=overwrite))
            for o, p in reversed(list(zip(outputs, plans, strict=True)))
        ][::-1]
        check_space(writers)
        for planned, files, told, writer in zip(plans, small, documents, writers, strict=True):
            try:
                weights = _write_tensors(planned, bank, writer, torch.device(device), progress)
            except TrialError as error:
                raise InputError(str(error), "change the recipe's parameters", where) from None
            for name, content in files.items():
                writer.file(name, content)
            told.write(writer, weights)
            writer.config(planned.config)
            # Last: an error here leaves nothing, and from now on nothing is read.
            check_unchanged(planned.checkpoints, "while it was merged", "merge again")
            writer.seal()
    _push(upload, target, note)
    return target


def _push(upload: Upload | None, folder: Path, note: Callable[[str], None] | None) -> None:
    if upload is not None:
        address = upload.push(folder)
        if note:
            note(f"pushed to {address}")


@dataclass(frozen=True)
class _Output:
    """A folder to write: its recipe, as an object and as text."""

    folder: Path
    recipe: Recipe
    text: str


def _stages(recipe: Recipe, parent: Path) -> dict[Path, Recipe]:
    """The recipes of all named documents, by the folder of each: `parent`/name.

    InputError for a name that leads out of `parent`, or, also where capitals do not count, to another one's folder.
    """
    stages: dict[Path, Recipe] = {}
    names: dict[str, str] = {}
    for count, document in enumerate(recipe.documents[:-1], start=1):
        if document.name is None:
            continue
        name = check_name(document.name, "document", document.where)
        other = names.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if (folder := parent / name) in stages or other != name:
            problem = f"the documents {other!r} and {name!r} would be written to one folder"
            raise InputError(problem, "give each another name", document.where)
        if folder.is_symlink():
            raise InputError(f"{folder} is a link, and may lead anywhere", "remove it first", document.where)
        stages[folder] = Recipe((*recipe.documents[: count - 1], replace(document, name=None)))
    return stages


def _check_apart(outputs: list[_Output]) -> None:
    """InputError if one folder to write is, or lies in, another one."""
    folders = [real_folder(output.folder) for output in outputs]
    for folder, output in zip(folders, outputs, strict=True):
        around = next((other for other in folders if other in folder.parents), None)
        if around is not None or folders.count(folder) > 1:
            problem = f"{output.folder} would be written, and {'in it' if around is None else around} another output"
            raise InputError(problem, "name folders that stand apart", Where("--intermediate-dir"))


def _layout(planned: MergePlan) -> dict[str, TensorLayout]:
    return {name: TensorLayout(job.shape, job.out) for name, job in planned.jobs.items()}


def _write_tensors(
    planned: MergePlan, bank: StreamingBank, writer: CheckpointWriter, device: torch.device, progress: Progress | None
) -> str:
    """Run all jobs and write their results; returns their digest. Raises TrialError if one holds NaN or Inf."""
    records, pace = list[str](), _Pace(planned)

    def run(job: MergeJob) -> tuple[MergeJob, Tensor, str]:
        tensor = torch.empty(job.shape, dtype=torch_dtype(job.out), device=device)
        write([job], [tensor], bank)
        try:
            return job, tensor, tensor_record(job.tensor, tensor)
        except NotFinite:
            raise not_finite(job) from None

    threads = torch.get_num_threads() if device.type == "cpu" else _FEEDING
    for job, tensor, record in run_in_order(list(planned.jobs.values()), run, bank.bytes_of, threads):
        writer.add(job.tensor, tensor)
        records.append(record)
        text, share = pace.after(job)
        if progress:
            progress(text, share)
    return combined(records)


class _Pace:
    """Measures how far a merge is and how fast, and estimates the time that is left."""

    def __init__(self, planned: MergePlan) -> None:
        self._total = max(1, sum(layout.bytes for layout in _layout(planned).values()))
        self._done, self._started = 0, time.monotonic()

    def after(self, job: MergeJob) -> tuple[str, float]:
        """The text for `Progress` after this job, and the share that is done, from 0 to 1."""
        self._done += TensorLayout(job.shape, job.out).bytes
        seconds = max(1e-3, time.monotonic() - self._started)
        left = seconds / self._done * (self._total - self._done)
        rate = f"{self._done / 1e6 / seconds:.0f} MB/s, {int(left) // 60}:{int(left) % 60:02d} left"
        return f"merged {job.tensor}, {rate}", self._done / self._total


def checkpoint_digest(path: Path | str) -> str:
    """The digest of a checkpoint folder's tensors; equal to `Resident.digest` of the recipe that it was merged by."""
    checkpoint = Checkpoint.open(str(path))
    return digest((name, checkpoint.read(name)) for name in checkpoint.tensors)
