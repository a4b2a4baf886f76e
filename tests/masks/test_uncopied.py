"""A model inside a mask's context is not copied; outside it is, bit for bit."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.storage.errors import UserError
from tests.models.tiny import tiny_inputs, tiny_model

UNITS = ["neurons", "heads", "hidden", "weights", "edges"]


def cut(model: Any, units: str) -> FrozenMask:
    sites = sites_of(model, [units])
    rng = torch.Generator().manual_seed(0)
    scores = {site.name: torch.rand(site.n_units, generator=rng) for site in sites}
    n_ablated = sum(site.n_units for site in sites) // 2
    return FrozenMask.exactly_k(scores, sites, zero_values(sites), n_ablated=n_ablated)


class Holder(nn.Module):
    """A model within another, as in a trainer's wrapper."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.inner = model


@pytest.mark.parametrize("units", UNITS)
def test_copies_inside_the_context_are_refused_and_outside_are_plain(units: str):
    model = tiny_model("gpt2", "causal_lm")
    inputs = tiny_inputs(model)
    plain = model(**inputs).logits
    mask = cut(model, units)
    with mask.applied(model):
        logits = model(**inputs).logits
        for whole in (model, Holder(model), [model], model.transformer.h[0]):
            with pytest.raises(UserError, match="the copy would stay cut for good"):
                copy.deepcopy(whole)
            with pytest.raises(UserError, match="the copy would stay cut for good"):
                pickle.dumps(whole)
            with pytest.raises(UserError, match="the copy would stay cut for good"):
                torch.save(whole, io.BytesIO())
        # after a refusal the model is cut as before; its numbers may be copied
        assert torch.equal(model(**inputs).logits, logits)
        copy.deepcopy(model.state_dict())
        copy.deepcopy(model.lm_head)
    assert not torch.equal(logits, plain)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(**inputs).logits, plain)
    assert torch.equal(pickle.loads(pickle.dumps(model))(**inputs).logits, plain)
    with mask.applied(copied):
        assert torch.equal(copied(**inputs).logits, logits)
    assert all("__reduce_ex__" not in vars(module) for module in model.modules())


def test_an_outer_context_still_refuses_after_an_inner_one():
    model = tiny_model("gpt2", "causal_lm")
    with cut(model, "neurons").applied(model):
        with cut(model, "heads").applied(model):
            pass
        with pytest.raises(UserError, match="the copy would stay cut for good"):
            copy.deepcopy(model)
    copy.deepcopy(model)
