"""Ablation values: means equal brute force on ragged batches, recordings are exact."""

import pytest
import torch
from torch import nn

from circuitcut.masks.ablation import mean_values, record_values, zero_values
from circuitcut.models.architectures import sites_of
from circuitcut.models.mlp import Mlp
from circuitcut.models.names import MODULE_KINDS
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError

FAMILIES = ["gpt2", "llama", "bert", "opt", "gpt_neo"]


def _batches(
    rng: torch.Generator,
) -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Batches of different sizes and lengths, with gaps in `where`."""
    batches = []
    for size, length in ((3, 6), (1, 4), (2, 9)):
        ids = torch.randint(2, 40, (size, length), generator=rng)
        where = torch.rand(size, length, generator=rng) < 0.6
        batches.append(({"input_ids": ids}, where))
    batches[0][1][:, 0] = batches[1][1][:, 0] = batches[2][1][:, 0] = False
    return batches


def _activations(model: nn.Module, site: Site, inputs: dict[str, torch.Tensor]):
    """What the site gates, caught by a hook of this test's own."""
    caught = []
    module = model.get_submodule(site.module)
    if site.kind == "hidden":
        handle = module.register_forward_hook(
            lambda _, __, out: caught.append(out[0] if isinstance(out, tuple) else out)
        )
    else:
        handle = module.register_forward_pre_hook(
            lambda _, args: caught.append(args[0])
        )
    model(**inputs)
    handle.remove()
    return caught[0].reshape(*inputs["input_ids"].shape, -1)  # OPT joins both axes


@pytest.mark.parametrize("family", FAMILIES)
def test_means_equal_brute_force_over_ragged_batches(family, make_model):
    model = make_model(family)
    sites = sites_of(model, MODULE_KINDS)
    batches = _batches(torch.Generator().manual_seed(0))
    pooled = mean_values(model, sites, batches).values
    by_position = mean_values(model, sites, batches, per_position=True).values
    for site in (sites[0], sites[-1], *sites[:: len(sites) // 4]):
        rows = [[] for _ in range(9)]
        for inputs, where in batches:
            activations = _activations(model, site, inputs)
            for example, position in where.nonzero().tolist():
                rows[position].append(activations[example, position])
        everything = torch.stack([row for position in rows for row in position])
        torch.testing.assert_close(
            pooled[site.name], everything.mean(0), rtol=0, atol=1e-12
        )
        assert by_position[site.name].shape == (9, everything.shape[1])
        for position, seen in enumerate(rows):
            # a position that is never marked falls back on the pooled mean
            expected = torch.stack(seen).mean(0) if seen else everything.mean(0)
            torch.testing.assert_close(
                by_position[site.name][position], expected, rtol=0, atol=1e-12
            )


def test_a_million_equal_float32_values_have_that_value_as_their_mean():
    model = Mlp(1, 1, 1)
    with torch.no_grad():
        model.blocks[0].linear.weight.fill_(0.1)
        model.blocks[0].linear.bias.fill_(0.0)
    sites = sites_of(model, ["neurons"])
    batch = {"pixels": torch.full((250_000, 1), 1.0)}
    values = mean_values(model, sites, [(batch, torch.ones(250_000).bool())] * 4)
    assert values.values["output:neurons"].item() == torch.tensor(0.1).item()


def test_recorded_values_are_the_activations_bit_for_bit(make_model, make_inputs):
    model, inputs = make_model("gpt2"), make_inputs("gpt2")
    sites = sites_of(model, MODULE_KINDS)
    recorded = record_values(model, sites, inputs)
    assert recorded.kind == "counterfactual"
    for site in sites:
        expected = _activations(model, site, inputs)
        assert torch.equal(recorded.values[site.name], expected)


def test_means_are_taken_in_evaluation_mode_and_every_mode_comes_back(make_model):
    model = make_model("bert").train()
    frozen = next(m for m in model.modules() if isinstance(m, nn.Dropout)).eval()
    sites = sites_of(model, ["neurons"])
    batches = _batches(torch.Generator().manual_seed(0))
    first, second = (mean_values(model, sites, batches).values for _ in range(2))
    assert [module for module in model.modules() if not module.training] == [frozen]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_which_values_can_live_in_a_bias(make_model, make_inputs):
    model, inputs = make_model("gpt2"), make_inputs("gpt2")
    sites = sites_of(model, ["neurons"])
    where = torch.ones_like(inputs["input_ids"]).bool()
    assert zero_values(sites).is_pooled
    assert mean_values(model, sites, [(inputs, where)]).is_pooled
    assert not mean_values(model, sites, [(inputs, where)], per_position=True).is_pooled
    assert not record_values(model, sites, inputs).is_pooled


def test_means_over_nothing_or_without_positions_are_refused(make_model, make_inputs):
    model, inputs = make_model("gpt2"), make_inputs("gpt2")
    sites = sites_of(model, ["neurons"])
    nowhere = torch.zeros_like(inputs["input_ids"]).bool()
    with pytest.raises(UserError, match="at least one marked position"):
        mean_values(model, sites, [(inputs, nowhere)])
    with pytest.raises(UserError, match=r"shape \(3, 6\).*got \(3, 5\)"):
        mean_values(model, sites, [(inputs, nowhere[:, :5])])
    image_model = Mlp(4, 3, 2)
    images = ({"pixels": torch.zeros(2, 4)}, torch.ones(2).bool())
    with pytest.raises(UserError, match="need a sequence axis"):
        mean_values(image_model, sites_of(image_model, ["neurons"]), [images], True)
