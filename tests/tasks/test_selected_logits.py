"""Logits of chosen positions are those of the whole pass, in every family."""

import pytest
import torch

from circuitcut.tasks.selected_logits import logits_at
from tests.models.tiny import TEXT_TYPES, heads_of, tiny_inputs, tiny_model


@pytest.mark.parametrize("kind", TEXT_TYPES)
def test_a_narrowed_head_gives_the_logits_of_the_whole_pass(kind: str):
    model = tiny_model(kind, heads_of(kind)[0]).double()
    inputs, widths = tiny_inputs(model), []
    where = torch.zeros(2, 6, dtype=torch.bool)
    where[0, 1] = where[0, 4] = where[1, 3] = True
    plain = model(**inputs).logits[where]
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, __, out: widths.append(out.shape[1]))
    narrowed = logits_at(model, inputs, where)
    handle.remove()
    torch.testing.assert_close(narrowed, plain, rtol=0, atol=1e-12)
    assert widths == [3]  # the head saw no other position
