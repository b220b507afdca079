from __future__ import annotations

import tiny_models

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.layouts.naming import rename_between, unwrapped
from evomerge.checkpoints.structure import Stack


def test_the_words_of_wrappers_are_taken_out_of_names():
    names = {"_orig_mod.model.norm.weight": 1, "model.layers.0._checkpoint_wrapped_module.mlp.weight": 2}
    assert unwrapped(names) == {"model.norm.weight": 1, "model.layers.0.mlp.weight": 2}


def test_names_that_would_then_be_one_stay():
    names = {"_orig_mod.norm.weight": 1, "norm.weight": 2}
    assert unwrapped(names) == names


def test_a_compiled_checkpoint_is_opened_under_plain_names(tmp_path):
    tensors = tiny_models.base_tensors()
    folder = tiny_models.write(tmp_path / "m", {f"_orig_mod.{n}": t for n, t in tensors.items()})
    checkpoint = Checkpoint.open(str(folder))
    assert set(checkpoint.tensors) == set(tensors)
    assert checkpoint.read("model.norm.weight").equal(tensors["model.norm.weight"])


def test_a_prefix_more_or_less_before_the_layers():
    ours, theirs = Stack("model.layers", 2), Stack("layers", 2)
    known = {"model.norm.weight", "model.layers.0.mlp.weight", "lm_head.weight"}
    more = rename_between(theirs, ours, known)
    assert more("norm.weight") == "model.norm.weight"
    assert more("layers.1.mlp.weight") == "model.layers.1.mlp.weight"
    assert more("score.weight") == "score.weight"
    assert more("lm_head.weight") == "lm_head.weight"
    assert rename_between(ours, theirs, ())("model.norm.weight") == "norm.weight"


def test_other_stacks_are_no_matter_of_a_prefix():
    assert rename_between(Stack("model.layers", 2), Stack("model.layers", 2), ()) is None
    assert rename_between(Stack("transformer.h", 2), Stack("model.layers", 2), ()) is None
