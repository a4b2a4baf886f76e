"""Baking: plain weights with the logits of the applied mask, or a refusal by name."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
)

from circuitcut.masks.ablation import (
    AblationValues,
    mean_values,
    record_values,
    zero_values,
)
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.storage.errors import UserError
from tests.masks.conftest import OWN_BLOCKS

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2", "qwen3", "bert", "distilbert", "mlp"]
FAMILIES += OWN_BLOCKS
ALL_KINDS = ["neurons", "heads", "weights"]
POST_NORM = ["bert", "distilbert"]


def _kinds(family: str) -> list[str]:
    return [kind for kind in ALL_KINDS if family != "mlp" or kind != "heads"]


def _where(inputs):
    if "pixels" in inputs:
        return torch.ones(len(inputs["pixels"])).bool()
    return inputs["attention_mask"].bool()


def _mask(model, kinds, ablation, inputs, share=0.2, **extra) -> FrozenMask:
    sites = sites_of(model, kinds)
    values = zero_values(sites)
    if ablation == "mean":
        values = mean_values(model, sites, [(inputs, _where(inputs))])
    n_units = sum(site.n_units for site in sites)
    return FrozenMask.random(
        sites, values, n_ablated=int(share * n_units), seed=0, **extra
    )


def _check_baked(make_model, family, mask, inputs, logits_of) -> torch.nn.Module:
    """Baking gives the applied mask's logits in both precisions; the float64 model."""
    for dtype, tolerance in ((torch.float32, 5e-5), (torch.float64, 1e-10)):
        model = make_model(family).to(dtype)
        if family == "mlp":
            inputs = {"pixels": inputs["pixels"].to(dtype)}
        plain = logits_of(model, inputs)
        with mask.applied(model):
            applied = logits_of(model, inputs)
        mask.bake_(model)
        baked = logits_of(model, inputs)
        assert (baked - applied).abs().max() <= tolerance
        assert (baked - plain).abs().max() > 1e-3
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_are_baked_into_every_projection(
    family, make_model, make_inputs, logits_of
):
    inputs = make_inputs(family)
    for kind in _kinds(family):
        mask = _mask(make_model(family), [kind], "zero", inputs)
        _check_baked(make_model, family, mask, inputs, logits_of)


@pytest.mark.parametrize(
    "family",
    ["gpt2", "gpt_neox", "bert", "distilbert", "mlp", "opt", "bloom", "xlm-roberta-xl"],
)
def test_pooled_means_move_into_the_bias(family, make_model, make_inputs, logits_of):
    inputs = make_inputs(family)
    for kind in _kinds(family):
        mask = _mask(make_model(family), [kind], "mean", inputs)
        _check_baked(make_model, family, mask, inputs, logits_of)


@pytest.mark.parametrize(
    ("family", "kind", "option"),
    [
        ("llama", "neurons", "mlp_bias"),
        ("llama", "heads", "attention_bias"),
        ("qwen3", "heads", "attention_bias"),
        ("gemma2", "heads", "attention_bias"),
        ("modernbert", "neurons", "mlp_bias"),
        ("modernbert", "heads", "attention_bias"),
    ],
)
def test_where_the_architecture_allows_a_bias_it_gets_one(
    family, kind, option, make_model, make_inputs, logits_of, tmp_path
):
    inputs = make_inputs(family)
    mask = _mask(make_model(family), [kind], "mean", inputs)
    model = _check_baked(make_model, family, mask, inputs, logits_of)
    assert getattr(model.config, option) is True
    model.save_pretrained(tmp_path)
    encoder = family == "modernbert"
    auto = AutoModelForMaskedLM if encoder else AutoModelForCausalLM
    again = auto.from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(
        logits_of(again, inputs), logits_of(model, inputs), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("family", POST_NORM)
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_hidden_units_of_post_norm_encoders_live_in_the_layer_norm(
    family, ablation, make_model, make_inputs, logits_of
):
    inputs = make_inputs(family)
    mask = _mask(make_model(family), ["hidden"], ablation, inputs, share=0.4)
    assert all(n > 0 for n in mask.n_ablated_at.values())  # the embedding level too
    _check_baked(make_model, family, mask, inputs, logits_of)


def test_a_baked_checkpoint_is_an_ordinary_one(
    make_model, make_inputs, logits_of, tmp_path
):
    inputs = make_inputs("bert")
    kinds = ["neurons", "heads", "hidden", "weights"]
    mask = _mask(make_model("bert"), kinds, "mean", inputs)
    model = make_model("bert")
    with mask.applied(model):
        applied = logits_of(model, inputs)
    mask.bake_(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForTokenClassification.from_pretrained(
        tmp_path, dtype=torch.float64
    )
    baked = logits_of(again.eval(), inputs)
    torch.testing.assert_close(baked, applied, rtol=0, atol=1e-10)


def test_only_the_weights_behind_ablated_units_change(make_model, make_inputs):
    model, before = make_model("gpt2"), make_model("gpt2")
    mask = _mask(model, ["neurons"], "zero", make_inputs("gpt2"))
    mask.bake_(model)
    old = dict(before.named_parameters())
    assert model.lm_head.weight is model.transformer.wte.weight
    for name, parameter in model.named_parameters():
        if not name.endswith("mlp.c_proj.weight"):
            assert torch.equal(parameter, old[name])
            continue
        kept = mask.keep[f"{name.removesuffix('.weight')}:neurons"]
        assert torch.equal(parameter[kept], old[name][kept])
        assert (parameter[~kept] == 0).all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2", "qwen3"])
def test_hidden_units_of_pre_norm_models_are_refused(family, make_model, make_inputs):
    model = make_model(family)
    mask = _mask(model, ["hidden"], "zero", make_inputs(family))
    with pytest.raises(UserError, match="only if a LayerNorm writes them"):
        mask.bake_(model)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("qwen3", "neurons"), ("gemma2", "neurons"), ("llama", "weights")],
)
def test_means_without_any_place_for_a_bias_are_refused(
    family, kind, make_model, make_inputs
):
    model, inputs = make_model(family), make_inputs(family)
    mask = _mask(model, [kind], "mean", inputs)
    with pytest.raises(UserError, match=r"layers\.0\..*no bias to hold"):
        mask.bake_(model)


def test_cuts_that_differ_between_positions_are_refused(make_model, make_inputs):
    model, inputs = make_model("bert"), make_inputs("bert")
    sites = sites_of(model, ["neurons"])
    spared = _mask(model, ["neurons"], "mean", inputs, special_ids=(3,))
    by_position = mean_values(
        model, sites, [(inputs, _where(inputs))], per_position=True
    )
    paired = record_values(model, sites, inputs)
    refused = {
        r"special_ids \(3,\)": spared,
        "one ablation value per position": FrozenMask(spared.keep, sites, by_position),
        "paired inputs": FrozenMask(spared.keep, sites, paired),
    }
    before = {name: p.clone() for name, p in model.named_parameters()}
    for told, mask in refused.items():
        with pytest.raises(UserError, match=told):
            mask.bake_(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_refused_site_leaves_the_others_unbaked(make_model, make_inputs):
    model = make_model("gpt2")
    mask = _mask(model, ["neurons", "hidden"], "zero", make_inputs("gpt2"))
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError, match=r"h.*:hidden cannot be baked"):
        mask.bake_(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_tied_weights_are_refused(make_model, make_inputs):
    model = make_model("bert")
    first, second = (layer.output.dense for layer in model.bert.encoder.layer)
    second.weight = first.weight
    mask = _mask(model, ["neurons"], "zero", make_inputs("bert"))
    with pytest.raises(UserError, match="its weight is tied"):
        mask.bake_(model)


def test_a_mask_that_ablates_nothing_is_baked_by_doing_nothing(make_model):
    model = make_model("gpt2")
    sites = sites_of(model, ["hidden"])
    values = AblationValues("counterfactual", {})
    FrozenMask.random(sites, values, n_ablated=0, seed=0, special_ids=(1,)).bake_(model)
