"""What running a merge and its parents shows: symptoms are worse than in every parent, and measured on all alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.examine.doctor import doctor
from evomerge.examine.findings.behaviour import Behaviour, LayerActivations
from evomerge.examine.findings.live import MERGE, Live
from evomerge.examine.findings.models import stored
from evomerge.examine.findings.patient import Patient
from evomerge.examine.findings.symptoms import symptoms, unexplained
from evomerge.scoring.slices import SliceInfo
from evomerge.types import SliceScore
from tests.examine.patients import edit, write_models

FINE = Behaviour(2.0, 0.4, 0.1, 0.8, (LayerActivations(1.0, 8.0, 5.0), LayerActivations(2.0, 9.0, 5.0)), 10.0, "text")


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    models = write_models("llama", tmp_path_factory.mktemp("llama"))
    views = {n: stored(n, Checkpoint.open(str(models.source(n)))) for n in ("base", "one", "two")}
    return Patient(views["one"], views["base"], (views["one"], views["two"]))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"bits_per_byte": 2.4}, []),
        ({"bits_per_byte": 2.6}, ["incoherent"]),
        ({"bits_per_byte": float("nan")}, ["incoherent"]),
        ({"entropy": 0.99}, ["incoherent"]),
        ({"repetition": 0.35}, []),
        ({"repetition": 0.7}, ["loops"]),
        ({"ended": 0.1}, []),
        ({"ended": 0.0}, ["no-end"]),
        ({"layers": (FINE.layers[0], replace(FINE.layers[1], rms=9.0))}, ["activations"]),
    ],
)
def test_what_is_worse_than_in_every_parent_is_a_symptom(
    patient: Patient, changes: dict[str, Any], names: list[str]
) -> None:
    live = Live({MERGE: replace(FINE, **changes), "base": FINE, "one": FINE, "two": FINE})
    assert [symptom.name for symptom in symptoms(patient, live)] == names


def test_what_a_parent_does_too_is_no_symptom(patient: Patient) -> None:
    odd = replace(FINE, bits_per_byte=3.0, entropy=0.99, repetition=0.7, ended=0.0)
    live = Live({MERGE: odd, "base": odd, "one": FINE, "two": odd})
    assert symptoms(patient, live) == ()


@pytest.mark.parametrize(("own", "worse"), [((0.3, 0.3), True), ((0.3, 0.9), True), ((0.55, 0.9), False)])
def test_scores_below_every_source(patient: Patient, own: tuple[float, float], worse: bool) -> None:
    infos = {n: SliceInfo(n, 1, "acc", 1.0, None, (), None, "") for n in ("a", "b")}

    def scores(*values: float) -> dict[str, SliceScore]:
        return {n: SliceScore(value, 0.05) for n, value in zip(infos, values, strict=True)}

    live = Live(slices=infos, scores={MERGE: scores(*own), "one": scores(0.6, 0.8), "two": scores(0.8, 0.6)})
    assert bool(symptoms(patient, live)) == worse


def test_symptoms_without_a_cause_are_a_finding(patient: Patient) -> None:
    live = Live({MERGE: replace(FINE, repetition=0.9), "one": FINE})
    found = unexplained(symptoms(patient, live))
    assert found is not None
    assert found.name == "no-visible-cause"
    assert found.evidence[0].value == 0.9
    assert found.evidence[0].beside == {"one": 0.1}
    assert unexplained(()) is None
    assert "scales" not in found.cause
    scaled = unexplained(symptoms(patient, live), {"a": 0.5, "b": 8.0})
    assert scaled is not None
    assert scaled.evidence[-1].value == "2, 0.5 to 8"
    assert "the recipe scales tensors" in scaled.cause


def test_a_merge_that_is_ruined_without_a_trace_is_felt(shared: Path, tmp_path: Path) -> None:
    """The features of each norm stand one place further, which no norm, cosine or row shows."""
    root = shared / "specialists"
    recipe = {"merge_method": "linear", "models": [{"model": str(root / "base"), "parameters": {"weight": 1.0}}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = evomerge.merge(tmp_path / "recipe.yaml", tmp_path / "out")

    def shift(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if "layernorm" in name:
                tensors[name] = tensor.roll(1)

    edit(out, shift)
    found = doctor(out, device="cpu")
    assert [s.name for s in found.symptoms][:1] == ["incoherent"]
    assert [f.name for f in found.findings] == ["no-visible-cause"]
