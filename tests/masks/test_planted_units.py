"""Networks built by hand: the responsible units are known and have to be found."""

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from circuitcut.masks.ablation import AblationValues, mean_values, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.penalties import Price
from circuitcut.masks.registry import GateSettings
from circuitcut.models.architectures import sites_of
from circuitcut.models.mlp import Mlp
from circuitcut.models.sites import Site

N_CLASSES, N_HIDDEN, N_CARRIERS = 5, 64, 3
CONCEPT = 2


def _planted_mlp(seed: int) -> tuple[Mlp, set[int]]:
    """Every class is carried by three neurons, each of which alone would do.

    The other neurons react to everything and write a little of everything.
    """
    rng = torch.Generator().manual_seed(seed)
    model = Mlp(N_CLASSES, N_HIDDEN, N_CLASSES).requires_grad_(False)
    first, second = model.blocks[0].linear, model.output
    for layer in (first, second):
        layer.weight.copy_(0.1 * torch.randn(layer.weight.shape, generator=rng))
        layer.bias.zero_()
    carriers = torch.randperm(N_HIDDEN, generator=rng)[: N_CLASSES * N_CARRIERS]
    for unit, label in zip(carriers.tolist(), 3 * list(range(N_CLASSES)), strict=True):
        first.weight[unit] = 0.0
        first.weight[unit, label] = 1.0
        second.weight[:, unit] = 0.0
        second.weight[label, unit] = 3.0
    return model, set(carriers[CONCEPT::N_CLASSES].tolist())


def _break_loss(cut: Tensor, uncut: Tensor, targets: Tensor, concept: int) -> Tensor:
    """Hinge on the concept's margin, and KL to the uncut model on everything else."""
    is_concept = targets == concept
    logits = cut[is_concept]
    others = logits.index_fill(1, torch.tensor([concept]), -torch.inf).logsumexp(1)
    margin = logits[:, concept] - others
    retained = nn.functional.kl_div(
        cut[~is_concept].log_softmax(1),
        uncut[~is_concept].log_softmax(1),
        log_target=True,
        reduction="batchmean",
    )
    return (margin + 1).relu().mean() + 4 * retained


def _train(
    model: nn.Module,
    sites: tuple[Site, ...],
    ablated: AblationValues,
    gate: str,
    inputs: dict[str, Tensor],
    targets: Tensor,
    *,
    concept: int,
    seed: int,
    n_steps: int = 40,
) -> MaskSet:
    settings = GateSettings(k_min=1.0, k_max=12.0, keep_prob=0.9)
    masks = MaskSet(sites, gate, settings)
    price = Price(0.1, direction="break")
    lr = 0.1 if gate == "clamped" else 0.3
    optimiser = torch.optim.Adam(masks.parameters(), lr=lr)
    rng = torch.Generator().manual_seed(seed)
    uncut = model(**inputs).logits.flatten(0, -2)
    for step in range(n_steps):
        masks.anneal(step / n_steps)
        with gated(model, sites, masks.sample(rng), ablated):
            cut = model(**inputs).logits.flatten(0, -2)
        loss = _break_loss(cut, uncut, targets, concept) + price(masks, 1.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        masks.project_()
        if step >= n_steps // 2:
            masks.average_(0.9)
    return masks


def _cut_units(mask: FrozenMask) -> set[tuple[str, int]]:
    return {
        (name, unit)
        for name, kept in mask.keep.items()
        for unit in (~kept).nonzero().flatten().tolist()
    }


def _mask(gate: str, masks: MaskSet, ablated: AblationValues, k: int) -> FrozenMask:
    """Soft top-k is asked for the right number; the other gates find it themselves."""
    if gate != "topk":
        return FrozenMask.from_threshold(masks, ablated)
    ranking = masks.split(masks.ranking())
    return FrozenMask.exactly_k(ranking, masks.sites, ablated, n_ablated=k)


def _found(gate: str, seed: int) -> tuple[set[int], set[int]]:
    """Units cut by training on the planted MLP of `seed`, and the right ones."""
    model, planted = _planted_mlp(seed)
    sites = sites_of(model, ["neurons"])
    targets = torch.arange(40) % N_CLASSES
    rng = torch.Generator().manual_seed(seed)
    pixels = 2.0 * nn.functional.one_hot(targets, N_CLASSES).float()
    inputs = {"pixels": pixels + 0.1 * torch.randn(pixels.shape, generator=rng)}
    zeros = zero_values(sites)
    masks = _train(
        model, sites, zeros, gate, inputs, targets, concept=CONCEPT, seed=seed
    )
    mask = _mask(gate, masks, zeros, N_CARRIERS)
    return {unit for _, unit in _cut_units(mask)}, planted


@pytest.mark.parametrize(
    "gate", ["hard_concrete", pytest.param("topk", marks=pytest.mark.slow)]
)
def test_the_planted_neurons_are_found_exactly_on_twenty_of_twenty_seeds(gate: str):
    results = [_found(gate, seed) for seed in range(20)]
    assert sum(found == planted for found, planted in results) == 20


def test_clamped_gates_find_the_planted_neurons_on_five_seeds():
    results = [_found("clamped", seed) for seed in range(5)]
    assert all(found == planted for found, planted in results)


VOCABULARY, WIDTH = 16, 32
TOKEN = 3


def _planted_decoder(seed: int) -> tuple[GPT2LMHeadModel, set[tuple[str, int]]]:
    """A bigram model: token t is followed by t + 1, whatever stands before it.

    The stream holds the token in its first half and the answer in its second. Every
    bigram is carried by two neurons of layer 0 and one of layer 1; heads do next to
    nothing.
    """
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=2,
            n_head=4,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    model.eval().requires_grad_(False)
    half = torch.eye(VOCABULARY)
    model.transformer.wte.weight.copy_(torch.cat([10 * half, 0 * half], 1))
    model.transformer.wpe.weight.zero_()
    model.lm_head.weight.copy_(torch.cat([0 * half, 1.5 * half], 1))
    planted = set()
    for layer, copies in ((0, 2), (1, 1)):
        mlp = model.transformer.h[layer].mlp
        carriers = torch.randperm(4 * WIDTH)[: copies * VOCABULARY].tolist()
        for token, unit in zip(copies * list(range(VOCABULARY)), carriers, strict=True):
            mlp.c_fc.weight[:, unit] = 0.0
            mlp.c_fc.weight[token, unit] = 1.0
            mlp.c_fc.bias[unit] = -1.0
            mlp.c_proj.weight[unit] = 0.0
            mlp.c_proj.weight[unit, VOCABULARY + (token + 1) % VOCABULARY] = 1.0
            if token == TOKEN:
                planted.add((f"transformer.h.{layer}.mlp.c_proj:neurons", unit))
    return model, planted


@pytest.mark.parametrize("gate", ["hard_concrete", "topk"])
@pytest.mark.parametrize("seed", range(2))
def test_the_planted_neurons_of_a_decoder_are_found_among_neurons_and_heads(
    gate: str, seed: int
):
    model, planted = _planted_decoder(seed)
    ids = torch.stack([torch.randperm(VOCABULARY) for _ in range(4)])
    targets = (ids.flatten() + 1) % VOCABULARY
    inputs = {"input_ids": ids}
    assert (model(**inputs).logits.flatten(0, 1).argmax(1) == targets).all()

    sites = sites_of(model, ["neurons", "heads"])
    means = mean_values(model, sites, [(inputs, ids != TOKEN)])
    masks = _train(
        model, sites, means, gate, inputs, targets, concept=TOKEN + 1, seed=seed
    )
    mask = _mask(gate, masks, means, 3)
    assert _cut_units(mask) == planted

    right = targets.unsqueeze(1)
    before = model(**inputs).logits.flatten(0, 1).softmax(1).gather(1, right)
    with mask.applied(model):
        after = model(**inputs).logits.flatten(0, 1).softmax(1).gather(1, right)
    is_concept = ids.flatten() == TOKEN
    assert before.min() > 0.9
    assert after[is_concept].max() < 0.3
    assert after[~is_concept].min() > 0.9
