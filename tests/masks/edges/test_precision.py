"""Edges of a model in bfloat16: as near to single precision as the model itself is."""

import pytest
import torch

from circuitcut.masks.edges.gating import edge_gated
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.models.residual.block_modules import PARTS
from circuitcut.models.residual.folded_model import ResidualModel
from tests.models.tiny import heads_of, tiny_inputs, tiny_model


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("value", [1.0, 1 - 2**-24])
def test_bfloat16_costs_the_gates_no_more_than_the_model(kind: str, value: float):
    exact = tiny_model(kind, heads_of(kind)[0]).requires_grad_(False)
    rough = tiny_model(kind, heads_of(kind)[0]).requires_grad_(False).bfloat16()
    inputs = tiny_inputs(exact)
    real = inputs["attention_mask"].bool()
    expected = exact(**inputs).logits[real]
    allowed = (rough(**inputs).logits[real].float() - expected).abs().max()
    gradients = []
    for model in (exact, rough):
        stack = EdgeStack(ResidualModel(model))
        keep = torch.full((stack.model.graph.n_edges,), value, requires_grad=True)
        with edge_gated(stack, keep):
            logits = model(**inputs).logits[real].float()
            gradients += torch.autograd.grad(logits.sin().sum(), keep)
        if model is rough:
            assert (logits - expected).abs().max() < 3 * allowed
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999
