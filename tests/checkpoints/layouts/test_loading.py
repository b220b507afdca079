from __future__ import annotations

import tiny_models

from evomerge.checkpoints.layouts.loading import LoadReport, load_report, without_numbers

UP = "model.layers.1.mlp.up_proj.weight"


def test_a_whole_checkpoint():
    assert load_report(tiny_models.config(), tiny_models.shapes()) == LoadReport()
    assert load_report(tiny_models.config(tie_word_embeddings=True), tiny_models.shapes(tied=True)) == LoadReport()


def test_missing_unexpected_and_mismatched_tensors():
    shapes = tiny_models.shapes() | {"mtp.fc.weight": (3, 3), "model.norm.weight": (17,)}
    del shapes[UP]
    report = load_report(tiny_models.config(), shapes)
    assert (report.missing, report.unexpected) == ((UP,), ("mtp.fc.weight",))
    assert list(report.mismatched) == ["model.norm.weight"]
    assert "[17]" in report.mismatched["model.norm.weight"]


def test_what_a_family_knows_of_is_not_unexpected():
    """Rotary frequencies; prediction layers of a family whose class names them."""
    assert load_report(tiny_models.config(), tiny_models.shapes() | {"model.rotary_emb.inv_freq": (4,)}) == LoadReport()
    config = tiny_models.config(model_type="nemotron_h", architectures=["NemotronHForCausalLM"])
    assert "mtp.fc.weight" not in load_report(config, {"mtp.fc.weight": (3, 3)}).unexpected


def test_experts_stored_one_by_one_fit_the_fused_parameter():
    config = tiny_models.config(
        model_type="mixtral",
        architectures=["MixtralForCausalLM"],
        num_local_experts=2,
        num_hidden_layers=1,
    )
    shapes = {n: s for n, s in tiny_models.shapes(layers=1).items() if ".mlp." not in n}
    block = "model.layers.0.block_sparse_moe"
    shapes[f"{block}.gate.weight"] = (2, 16)
    for expert in range(2):
        for part, shape in (("w1", (24, 16)), ("w2", (16, 24)), ("w3", (24, 16))):
            shapes[f"{block}.experts.{expert}.{part}.weight"] = shape
    assert load_report(config, shapes) == LoadReport()
    del shapes[f"{block}.experts.1.w2.weight"]
    assert load_report(config, shapes).mismatched or load_report(config, shapes).failure


def test_unknown_models_and_broken_configurations():
    assert load_report(tiny_models.config(model_type="of_their_own"), tiny_models.shapes()) is None
    assert load_report({}, tiny_models.shapes()) is None
    assert load_report(tiny_models.config(hidden_act="no_such"), tiny_models.shapes()).failure


def test_names_of_all_layers():
    assert without_numbers("model.layers.12.experts.3.w1.weight") == "model.layers.*.experts.*.w1.weight"
