"""`evomerge.merge`: a recipe -> a checkpoint folder, one tensor after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from evomerge.checkpoints.checkpoint import TOKENIZER_FILES, Checkpoint
from evomerge.checkpoints.preflight import check_tokenizers
from evomerge.checkpoints.tokenizer import chat_template
from evomerge.checkpoints.write import SHARD_BYTES, CheckpointWriter, Layout, check_target
from evomerge.errors import InputError, TrialError, Where
from evomerge.merge.bank import SourceBank
from evomerge.merge.card import card
from evomerge.merge.digest import combined, digest, tensor_record
from evomerge.merge.execute import execute
from evomerge.merge.jobs import Plan
from evomerge.merge.plan import plan
from evomerge.recipe.mergekit import read_recipe, write_recipe
from evomerge.recipe.recipe import Document, Recipe

RECIPE_FILE = "mergekit_config.yml"
_TEMPLATE_FILE = "chat_template.jinja"


def merge(
    recipe: Path | str | Recipe,
    out: Path | str,
    *,
    progress: Callable[[str, float], None] | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Merge to disk. Memory: the tensors that one output tensor is made of.

    Args:
        recipe: a recipe, or the path of its file.
        out: the folder to write; it appears when it is whole.
        progress: called with each tensor's name and the share that is done, from 0 to 1.
        overwrite: replace a folder that exists.
        shard_bytes: the most bytes of a weights file.

    Returns:
        The absolute folder.

    Raises:
        InputError: the recipe or a checkpoint is wrong, the target exists, or the disk is full.
    """
    file = None if isinstance(recipe, Recipe) else Path(recipe)
    merged = recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe))
    text = file.read_text(encoding="utf-8") if file else write_recipe(merged)
    where = Where(file) if file else None
    target = Path(out).absolute()
    check_target(target, overwrite)
    bank = SourceBank(keep=False)
    planned = plan(merged, bank.open)
    tokenizer, template = tokenizer_of(merged.output, planned, where)
    layout = {name: Layout(job.shape, job.out) for name, job in planned.jobs.items()}
    records = []
    with CheckpointWriter(target, layout, shard_bytes=shard_bytes, overwrite=overwrite) as writer:
        for done, (name, job) in enumerate(planned.jobs.items(), start=1):
            try:
                tensor = execute(job, bank)
            except TrialError as error:
                raise InputError(str(error), "change the recipe's parameters", where) from None
            writer.add(name, tensor)
            records.append(tensor_record(name, tensor))
            if progress:
                progress(f"writing {name}", done / len(planned.jobs))
        for source in _side_files(planned.donor, tokenizer):
            if source.name != _TEMPLATE_FILE or template is None:
                writer.copy(source)
        if template is not None:
            writer.text(_TEMPLATE_FILE, template)
        writer.text(RECIPE_FILE, text)
        writer.text("README.md", card(target.name, merged, text, planned, combined(records)))
        writer.config(planned.config)
    return target


def checkpoint_digest(path: Path | str) -> str:
    """The digest of a checkpoint folder's tensors; equal to `Resident.digest` of the recipe that it was merged by."""
    checkpoint = Checkpoint.open(str(path))
    return digest((name, checkpoint.tensor(name)) for name in checkpoint.tensors)


def _side_files(donor: Checkpoint, tokenizer: Checkpoint) -> list[Path]:
    generation = donor.path / "generation_config.json"
    files = [tokenizer.path / name for name in TOKENIZER_FILES]
    return [f for f in (*files, generation) if f.is_file()]


def tokenizer_of(document: Document, planned: Plan, where: Where | None = None) -> tuple[Checkpoint, str | None]:
    """The checkpoint whose tokenizer files the output takes, and the chat template that replaces theirs.

    A document without tokenizer_source takes its base's files unchecked, as mergekit does.

    Raises:
        InputError: the setting needs vocabularies to be equal, and they are not, or it names no model of the recipe.
    """
    models = {c.reference: c for c in planned.checkpoints}
    source = document.tokenizer_source
    if source is not None:
        others = {ref: c for ref, c in models.items() if c is not planned.donor}
        policy = "base" if models.get(source) is planned.donor else source
        check_tokenizers(planned.donor, others, policy, lambda _: where)
    tokenizer = models.get(source, planned.donor) if source else planned.donor
    return tokenizer, chat_template_of(document.chat_template, models, tokenizer, where)


def chat_template_of(
    setting: str | None, models: dict[str, Checkpoint], tokenizer: Checkpoint, where: Where | None = None
) -> str | None:
    """The template that a setting asks for: None (the tokenizer's own), "auto" (the commonest among the models, the
    first listed among equals), one of the models, or a Jinja text. InputError otherwise."""
    if setting is None:
        return None
    if setting == "auto":
        found = Counter(t for t in map(chat_template, models.values()) if t)
        return found.most_common(1)[0][0] if found else None
    if setting in models:
        return chat_template(models[setting])
    if "{" in setting:
        return setting
    mend = "use auto, one of the recipe's models, or a Jinja text"
    raise InputError(f"chat_template {setting!r} is not known", mend, where)
