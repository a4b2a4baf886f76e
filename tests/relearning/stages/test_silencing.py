"""The published way of pruning, worked out on every family."""

import pytest
import torch

from circuitcut.attribution.words.states import hidden_sites
from circuitcut.masks.ablation import record_values, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.relearning.stages.silencing import norm_of, silence_
from circuitcut.storage.errors import UserError
from tests.models.tiny import D_MODEL, DECODERS, ENCODERS, tiny_inputs, tiny_model

UNIT = 5

WITHOUT_NORM = ("olmo", "olmo2", "gptj")
POST_NORM = [
    k for k in ENCODERS if k not in ("electra", "modernbert", "xlm-roberta-xl")
]


def mask_of(model: torch.nn.Module) -> FrozenMask:
    """Unit 5 of every level is ablated."""
    sites = hidden_sites(model)
    keep = torch.arange(D_MODEL) != UNIT
    return FrozenMask({s.name: keep for s in sites}, sites, zero_values(sites))


@pytest.mark.parametrize("kind", POST_NORM)
def test_in_an_encoder_the_unit_is_zero_at_every_position_as_when_baked(kind: str):
    model, baked = tiny_model(kind), tiny_model(kind)
    mask = mask_of(model)
    counts = silence_(model, mask)
    assert set(counts.values()) == {1}
    found = record_values(model, mask.sites, tiny_inputs(model)).values
    for site in mask.sites:
        assert (found[site.name][..., UNIT] == 0).all()
        assert (found[site.name][..., UNIT + 1] != 0).all()
    mask.bake_(baked)
    for name, value in model.state_dict().items():
        assert torch.equal(value, baked.state_dict()[name]), name


@pytest.mark.parametrize(
    "kind", [k for k in DECODERS if k not in (*WITHOUT_NORM, "opt")]
)
def test_in_a_decoder_the_mlp_alone_no_longer_reads_the_unit(kind: str):
    model = tiny_model(kind)
    mask = mask_of(model)
    counts = silence_(model, mask)
    assert list(counts.values()) == [0, 1, 1]  # no norm behind the embeddings
    seen = {}
    for site in mask.sites[1:]:
        norm, _ = norm_of(model, site)
        norm.register_forward_hook(lambda m, a, y, s=site: seen.update({s.layer: y}))
    model(**tiny_inputs(model))
    assert sorted(seen) == [0, 1]
    for value in seen.values():
        assert (value[..., UNIT] == 0).all()
        assert (value[..., UNIT + 1] != 0).any()


@pytest.mark.parametrize("kind", [*WITHOUT_NORM, "electra", "modernbert"])
def test_a_model_without_such_a_norm_is_refused(kind: str):
    """OLMo 2 has none before its MLPs, OLMo one without gains, GPT-J one that attention
    reads too, this ELECTRA a projection behind the last, ModernBERT plain sums."""
    model = tiny_model(kind)
    with pytest.raises(UserError, match="use --holdings lasting"):
        silence_(model, mask_of(model))
