"""Other programs' masks: what their tensors mean, round trips, and bad files.

The oracle is a transformer written from the papers' definition, that reads the tensors
as those programs do: it shares no code with the formats.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from circuitcut.masks.ablation import AblationValues, record_values, zero_values
from circuitcut.masks.edges.sites import by_site, flat_gates
from circuitcut.masks.formats.conventions import (
    CONVENTIONS,
    cut_differences,
    graph_in,
    translated,
)
from circuitcut.masks.formats.edge_files import (
    read_edges,
    write_edges,
    write_named_edges,
)
from circuitcut.masks.formats.edge_lists import graph_json, live_nodes, read_graph_json
from circuitcut.masks.formats.edge_matrices import regrouped
from circuitcut.masks.formats.edge_tensors import LAYOUTS, kept_by, tensors_of
from circuitcut.masks.formats.programs import FORMATS
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import edge_sites, sites_of
from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.storage.errors import UserError
from tests.masks.folded_values import rewritten
from tests.models.tiny import (
    D_MODEL,
    N_HEADS,
    N_LAYERS,
    exact_norms,
    tiny_inputs,
    tiny_model,
)

N_WRITERS = 1 + N_LAYERS * (N_HEADS + 1)
KINDS = ["gpt2", "gpt_neox", "llama"]
MODELS: dict[str, Any] = {}
SWITCHES = [
    {"position": p, "attention_bias": b, "value_bias": v}
    for p, b, v in (
        ("merged", "always", "heads"),
        ("merged", "heads", "output"),
        ("own", "always", "output_with_norm"),
        ("own", "heads", "heads"),
        ("always", "always", "output"),
        ("always", "heads", "output_with_norm"),
    )
]


def model_of(kind: str) -> Any:
    if kind not in MODELS:
        model = tiny_model(kind, "causal_lm").double().requires_grad_(False)
        MODELS[kind] = model
    return MODELS[kind]


def ids() -> Tensor:
    return torch.arange(12).view(2, 6) % 11 + 5


def ending(name: str) -> str:
    return ".json" if name in ("mib", "edges") else ".safetensors"


def draw(n: int, seed: int, share: float = 0.7) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share


def cut_logits(graph: ResidualGraph, kept: Tensor, other: Tensor | None = None):
    """Logits of our cut GPT-2; zero ablation, or by what `other` inputs give."""
    model = model_of("gpt2")
    sites = edge_sites(model, graph)
    values = zero_values(sites)
    if other is not None:
        values = record_values(model, sites, {"input_ids": other})
    mask = FrozenMask(
        by_site(sites, kept), sites, AblationValues(values.kind, values.values)
    )
    with mask.applied(model, ablated=values):
        return model(input_ids=ids()).logits


class Reference:
    """GPT-2 as a sum of writers; masks multiply them, the paired run stands in."""

    def __init__(
        self,
        *,
        nodes: bool,
        bias_in_heads: bool,
        value_bias: str,
        always: bool = False,
    ):
        plain = value_bias == "heads"
        model = model_of("gpt2") if plain else rewritten("gpt2", value_bias)
        self.model = model.transformer
        self.nodes, self.bias_in_heads, self.always = nodes, bias_in_heads, always

    def inputs(self, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        """First writers, and what every reader gets besides."""
        token = self.model.wte(tokens)
        position = self.model.wpe(torch.arange(tokens.shape[1])).expand_as(token)
        if self.nodes:
            return [token, position], torch.zeros_like(token)
        if self.always:
            return [token], position
        return [token + position], torch.zeros_like(token)

    def logits(
        self, tokens: Tensor, masks: dict[str, Any], other: Any = None
    ) -> Tensor:
        """`masks[layer]` is q, k, v (writer, head) and mlp; `masks["out"]` a vector."""
        written, fixed = self.inputs(tokens)
        for layer, block in enumerate(self.model.h):
            reads = [
                self.read(written, other, m, fixed) for m in masks[layer]["qkv"]
            ]  # (head, batch, seq, d_model) each
            heads = self.attend(block.attn, [block.ln_1(r) for r in reads])
            if not self.bias_in_heads:
                fixed = fixed + block.attn.c_proj.bias
            written = written + heads
            read = self.read(written, other, masks[layer]["mlp"][:, None], fixed)[0]
            written = [*written, block.mlp(block.ln_2(read))]
        self.written = written
        last = self.read(written, other, masks["out"][:, None], fixed)[0]
        return self.model.ln_f(last) @ self.model.wte.weight.T

    def read(self, written, other, mask, fixed) -> Tensor:
        stack = torch.stack(written)
        there = torch.zeros_like(stack) if other is None else torch.stack(other)
        there = there[: len(stack)]
        mask = mask.double()
        kept = torch.einsum("wbsd,wh->hbsd", stack, mask)
        return kept + torch.einsum("wbsd,wh->hbsd", there, 1 - mask) + fixed

    def attend(self, attention: Any, reads: list[Tensor]) -> list[Tensor]:
        width = D_MODEL // N_HEADS
        weight = attention.c_attn.weight.view(D_MODEL, 3, N_HEADS, width)
        bias = attention.c_attn.bias.view(3, N_HEADS, width)
        output = attention.c_proj.weight.view(N_HEADS, width, D_MODEL)
        share = attention.c_proj.bias / N_HEADS if self.bias_in_heads else 0.0
        written = []
        for head in range(N_HEADS):
            q, k, v = (
                reads[i][head % len(reads[i])] @ weight[:, i, head] + bias[i, head]
                for i in range(3)
            )
            found = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            written.append(found @ output[head] + share)
        return written


def masks_by_layer(tensors: dict[str, Tensor], name: str) -> dict[str, Any]:
    """Masks as those programs use them, 1 keeps, (writer, head)."""
    found: dict[Any, Any] = {}
    for layer in range(N_LAYERS):
        if name == "auto_circuit":
            block = f"blocks.{layer}.hook_"
            keys = [f"{block}{letter}_input" for letter in "qkv"]
            keys = keys if keys[0] in tensors else [f"{block}attn_in"] * 3
            qkv = [1 - tensors[key].T for key in keys]
            mlp = 1 - tensors[f"{block}mlp_in"]
        elif name == "circuit_breaking":
            qkv = [tensors[f"blocks.{layer}.edge_mask_attentions"]] * 3
            mlp = tensors[f"blocks.{layer}.edge_mask_mlp"]
        elif name == "disco_gp":
            block = f"blocks.{layer}.edge_mask_"
            qkv = [tensors[f"{block}attention_{x}_logits"] > 0 for x in "qkv"]
            mlp = tensors[f"{block}mlp_logits"] > 0
        else:
            qkv = [tensors[f"edges.{layer}.{letter}"] for letter in "qkv"]
            mlp = tensors[f"edges.{layer}.mlp"]
        found[layer] = {"qkv": qkv, "mlp": mlp}
    last = {
        "auto_circuit": f"blocks.{N_LAYERS - 1}.hook_resid_post",
        "circuit_breaking": "output_mask",
        "disco_gp": "edge_mask_output_logits",
        "edge_pruning": "edges.final",
    }[name]
    found["out"] = 1 - tensors[last] if name == "auto_circuit" else tensors[last]
    found["out"] = found["out"] > 0 if name == "disco_gp" else found["out"]
    return found


def random_tensors(name: str, seed: int, *, merged: bool = False) -> dict[str, Tensor]:
    """A mask of GPT-2 in the shapes that those programs have, by their own formulas."""
    rng = torch.Generator().manual_seed(seed)

    def bits(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=rng) < 0.7).float()

    found: dict[str, Tensor] = {}
    first = 2 if name == "edge_pruning" else 1
    for layer in range(N_LAYERS):
        before = first + layer * (N_HEADS + 1)
        if name == "auto_circuit":
            block = f"blocks.{layer}.hook_"
            keys = ["attn_in"] if merged else ["q_input", "k_input", "v_input"]
            found |= {f"{block}{key}": 1 - bits(N_HEADS, before) for key in keys}
            found[f"{block}mlp_in"] = 1 - bits(before + N_HEADS)
        elif name == "circuit_breaking":
            found[f"blocks.{layer}.edge_mask_attentions"] = bits(before, N_HEADS)
            found[f"blocks.{layer}.edge_mask_mlp"] = bits(before + N_HEADS)
        elif name == "disco_gp":
            block = f"blocks.{layer}.edge_mask_"
            for key in ("q", "k", "v"):
                logits = bits(before, N_HEADS) * 3.5 - 1.25
                found[f"{block}attention_{key}_logits"] = logits
            found[f"{block}mlp_logits"] = bits(before + N_HEADS) * 2 - 0.5
        else:
            for key in ("q", "k", "v"):
                found[f"edges.{layer}.{key}"] = bits(before, N_HEADS)
            found[f"edges.{layer}.mlp"] = bits(before + N_HEADS)
            found[f"nodes.{layer}.heads"] = bits(N_HEADS)
            found[f"nodes.{layer}.mlp"] = bits()
    last, n = bits(N_WRITERS + first - 1), N_LAYERS - 1
    if name == "auto_circuit":
        return found | {f"blocks.{n}.hook_resid_post": 1 - last}
    if name == "edge_pruning":
        nodes = {"nodes.tokens": bits(), "nodes.positions": bits()}
        return found | nodes | {"edges.final": last}
    key = {"circuit_breaking": "output_mask", "disco_gp": "edge_mask_output_logits"}
    return found | {key[name]: last if name == "circuit_breaking" else last - 0.5}


@pytest.mark.parametrize(
    ("name", "merged"),
    [
        ("auto_circuit", False),
        ("auto_circuit", True),
        ("circuit_breaking", True),
        ("disco_gp", False),
    ],
)
def test_a_file_cuts_what_its_own_program_cuts(name: str, merged: bool, tmp_path: Path):
    tensors = random_tensors(name, 1, merged=merged)
    path = tmp_path / "mask.safetensors"
    save_file(tensors, path)
    found = read_edges(path, name, model_of("gpt2"))
    assert found.graph.separate_qkv is not merged
    assert found.kept is not None
    reference = Reference(
        nodes=False,
        bias_in_heads=name != "auto_circuit",
        value_bias="output" if name == "circuit_breaking" else "output_with_norm",
    )
    expected = reference.logits(ids(), masks_by_layer(tensors, name))
    ours = cut_logits(found.graph, found.kept)
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)
    inverted = cut_logits(found.graph, ~found.kept)
    assert (inverted - expected).abs().max() > 0.1


@pytest.mark.parametrize("other", [None, (ids() * 3 + 1) % 60])
def test_edge_prunings_node_masks_multiply_the_edges(
    other: Tensor | None, tmp_path: Path
):
    tensors = random_tensors("edge_pruning", 2)
    path = tmp_path / "mask.safetensors"
    save_file(tensors, path)
    found = read_edges(path, "edge_pruning", model_of("gpt2"))
    assert found.graph.position == "own"
    assert found.graph.attention_bias == "heads"
    assert found.kept is not None
    masks = masks_by_layer(tensors, "edge_pruning")
    nodes = [tensors["nodes.tokens"], tensors["nodes.positions"]]
    for layer in range(N_LAYERS):
        heads, mlp = tensors[f"nodes.{layer}.heads"], tensors[f"nodes.{layer}.mlp"]
        nodes += [*heads, mlp]
    node = torch.stack(nodes)
    for layer in range(N_LAYERS):
        masks[layer]["qkv"] = [m * node[: len(m), None] for m in masks[layer]["qkv"]]
        masks[layer]["mlp"] = masks[layer]["mlp"] * node[: len(masks[layer]["mlp"])]
    masks["out"] = masks["out"] * node
    reference = Reference(nodes=True, bias_in_heads=True, value_bias="heads")
    there = None
    if other is not None:
        everything = {
            layer: {"qkv": [torch.ones_like(m) for m in masks[layer]["qkv"]],
                    "mlp": torch.ones_like(masks[layer]["mlp"])}
            for layer in range(N_LAYERS)
        }  # fmt: skip
        reference.logits(other, {**everything, "out": torch.ones_like(node)})
        there = reference.written
    expected = reference.logits(ids(), masks, there)
    ours = cut_logits(found.graph, found.kept, other)
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)


def test_an_eap_ig_graph_keeps_positions_and_biases_on(tmp_path: Path):
    model = model_of("gpt2")
    graph = graph_in(model, CONVENTIONS["mib"])
    kept = draw(graph.n_edges, 3)
    path = tmp_path / "graph.json"
    edges = dict(zip(graph.edges(), kept.tolist(), strict=True))
    cfg = {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": D_MODEL}
    entries = {name: {"score": 0.5, "in_graph": k} for name, k in edges.items()}
    path.write_text(json.dumps({"cfg": cfg, "nodes": {}, "edges": entries}))
    found = read_edges(path, "mib", model)
    assert found.graph.position == "always"
    masks: dict[Any, Any] = {}
    writers = graph.writers()
    for layer in range(N_LAYERS):
        before = writers[: graph.n_before(layer)]
        qkv = [
            torch.tensor(
                [[edges[f"{w}->a{layer}.h{h}<{x}>"] for h in range(4)] for w in before]
            )
            for x in "qkv"
        ]
        seen = writers[: graph.n_seen_by_mlp(layer)]
        mlp = torch.tensor([edges[f"{w}->m{layer}"] for w in seen])
        masks[layer] = {"qkv": qkv, "mlp": mlp}
    masks["out"] = torch.tensor([edges[f"{w}->logits"] for w in writers])
    reference = Reference(
        nodes=False, bias_in_heads=False, value_bias="output_with_norm", always=True
    )
    expected = reference.logits(ids(), masks)
    assert found.kept is not None
    ours = cut_logits(found.graph, found.kept)
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_mask_comes_back_from_every_format(
    name: str, kind: str, seed: int, share: float, tmp_path_factory: Any
):
    model = model_of(kind)
    graph = sites_of(model, ["edges"])[0].graph
    if name in CONVENTIONS:
        theirs = graph_in(model, CONVENTIONS[name])
        graph = translated_graph(model, theirs)
    kept = draw(graph.n_edges, seed, share)
    path = tmp_path_factory.mktemp("masks") / f"mask{ending(name)}"
    write(path, name, model, graph, kept)
    found = read_edges(path, name, model)
    assert found.graph == graph
    assert torch.equal(found.kept, kept)


def write(path: Path, name: str, model: Any, graph: Any, kept: Tensor) -> None:
    if name == "edges":
        write_named_edges(path, graph, kept)
    else:
        ablation = CONVENTIONS[name].ablation
        write_edges(path, name, model, graph, kept, ablation=ablation)


def pruned_by_hand(graph: ResidualGraph, kept: Tensor) -> Tensor:
    """Nodes without kept edges in or out lose all edges, until there is none.

    EAP-IG's pruning, https://github.com/hannamw/EAP-IG, `Graph.prune`.
    """
    names = [
        name for name, is_kept in zip(graph.edges(), kept.tolist(), strict=True)
        if is_kept
    ]  # fmt: skip
    while True:
        sources = {name.split("->")[0] for name in names} | {"logits"}
        targets = {name.split("->")[1].split("<")[0] for name in names} | {"input"}
        alive = sources & targets
        left = [n for n in names if n.split("->")[0] in alive
                and n.split("->")[1].split("<")[0] in alive]  # fmt: skip
        if left == names:
            return torch.tensor([name in set(names) for name in graph.edges()])
        names = left


def values_of(graph: ResidualGraph, ablation: str) -> AblationValues:
    """Zero, means, or another batch's activations at all sites of GPT-2."""
    model, sites = model_of("gpt2"), edge_sites(model_of("gpt2"), graph)
    if ablation == "zero":
        return zero_values(sites)
    there = record_values(model, sites, {"input_ids": (ids() * 3 + 1) % 60})
    if ablation == "counterfactual":
        return there
    means = {name: value.mean((1, 2)) for name, value in there.values.items()}
    return AblationValues("mean", means)


def logits_by(graph: ResidualGraph, kept: Tensor, values: AblationValues) -> Tensor:
    model, sites = model_of("gpt2"), edge_sites(model_of("gpt2"), graph)
    mask = FrozenMask(by_site(sites, kept), sites, values)
    with mask.applied(model):
        return model(input_ids=ids()).logits


def kept_names(graph: ResidualGraph, *names: str) -> Tensor:
    return torch.tensor([name in names for name in graph.edges()])


@pytest.mark.parametrize("ablation", ["zero", "mean", "counterfactual"])
def test_an_eap_ig_graph_is_the_same_cut_after_its_pruning_or_refused(
    ablation: Any, tmp_path: Path
):
    model, path = model_of("gpt2"), tmp_path / "graph.json"
    graph = graph_in(model, CONVENTIONS["mib"])
    values = values_of(graph, ablation)
    masks = [
        draw(graph.n_edges, seed, share) for seed in range(8) for share in (0.1, 0.6)
    ]
    masks.append(kept_names(graph, "a0.h0->logits"))
    # into nowhere: m0 reaches nothing
    masks.append(kept_names(graph, "input->m0", "input->logits"))
    refused = 0
    for kept in masks:
        evaluated = logits_by(graph, pruned_by_hand(graph, kept), values)
        difference = float((logits_by(graph, kept, values) - evaluated).abs().max())
        if difference > 1e-9:
            with pytest.raises(UserError, match="no path joins to the input, first"):
                write_edges(path, "mib", model, graph, kept, ablation=ablation)
            refused += 1
            continue
        write_edges(path, "mib", model, graph, kept, ablation=ablation)
        again = read_edges(path, "mib", model, ablation=ablation)
        ours = logits_by(graph, again.kept, values)
        torch.testing.assert_close(ours, evaluated, atol=1e-9, rtol=0)
    assert (refused > 0) is (ablation != "counterfactual")
    assert refused < len(masks)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_an_imported_eap_ig_graph_is_pruned_as_it_is_there(
    ablation: Any, tmp_path: Path
):
    model, path = model_of("gpt2"), tmp_path / "graph.json"
    graph = graph_in(model, CONVENTIONS["mib"])
    kept = draw(graph.n_edges, 1, 0.1)
    write_edges(path, "mib", model, graph, kept, ablation="counterfactual")
    found = read_edges(path, "mib", model, ablation=ablation)
    assert torch.equal(found.kept, pruned_by_hand(graph, kept))
    assert not torch.equal(found.kept, kept)
    there = read_edges(path, "mib", model, ablation="counterfactual")
    assert torch.equal(there.kept, kept)


def test_the_smallest_dead_end_is_refused_by_its_name(tmp_path: Path):
    model, path = model_of("gpt2"), tmp_path / "graph.json"
    graph = graph_in(model, CONVENTIONS["mib"])
    kept = kept_names(graph, "a0.h0->logits")
    told = r"removes the 1 kept edges .*, first a0\.h0->logits, .* zero ablation"
    with pytest.raises(UserError, match=told):
        write_edges(path, "mib", model, graph, kept, ablation="zero")
    assert not path.exists()
    write_edges(path, "mib", model, graph, kept, ablation="zero", allow_difference=True)
    assert json.loads(path.read_text())["edges"]["a0.h0->logits"]["in_graph"]


@pytest.mark.parametrize("switches", SWITCHES)
def test_a_list_of_named_edges_is_the_same_cut_or_refused(
    switches: dict[str, Any], tmp_path: Path
):
    model, path = model_of("gpt2"), tmp_path / "edges.json"
    graph = ResidualGraph(2, 4, 4, **switches)
    kept = draw(graph.n_edges, 10)
    biases = switches["attention_bias"], switches["value_bias"]
    if biases != ("always", "heads"):
        told = "(attention's output bias|the value biases) otherwise"
        with pytest.raises(UserError, match=told):
            write_named_edges(path, graph, kept)
        return
    write_named_edges(path, graph, kept)
    found = read_edges(path, "edges", model)
    before, after = cut_logits(graph, kept), cut_logits(found.graph, found.kept)
    torch.testing.assert_close(before, after, atol=1e-9, rtol=0)


def translated_graph(model: Any, theirs: ResidualGraph) -> ResidualGraph:
    (site, *_) = sites_of(model, ["edges"], merged_qkv=not theirs.separate_qkv)
    fields = vars(site.graph) | {
        "position": theirs.position,
        "attention_bias": theirs.attention_bias,
        "value_bias": theirs.value_bias,
    }
    known = ResidualGraph.__dataclass_fields__
    return ResidualGraph(**{k: v for k, v in fields.items() if k in known})


@pytest.mark.parametrize("embedded", [True, False])
def test_edge_prunings_list_of_edges_comes_back(embedded: bool, tmp_path: Path):
    model = model_of("gpt2")
    graph = graph_in(model, CONVENTIONS["edge_pruning"])
    kept = draw(graph.n_edges, 4)
    path = tmp_path / "edges.json"
    write_edges(path, "edge_pruning", model, graph, kept)
    pairs = json.loads(path.read_text())
    known = (
        r"(tok_embeds|pos_embeds|m\d+|a\d+\.h\d+) (a\d+\.h\d+\.[qkv]|m\d+|resid_post)"
    )
    assert all(re.fullmatch(known, " ".join(pair)) for pair in pairs)
    assert torch.equal(read_edges(path, "edge_pruning", model).kept, kept)
    if embedded:
        return
    path.write_text(json.dumps([p for p in pairs if "embeds" not in p[0]]))
    with pytest.raises(UserError, match="--embeddings nodes"):
        read_edges(path, "edge_pruning", model)
    of_input = torch.tensor(
        [name.startswith(("input", "position")) for name in graph.edges()]
    )
    closed = read_edges(path, "edge_pruning", model, embeddings="nodes").kept
    opened = read_edges(path, "edge_pruning", model, embeddings="always").kept
    assert torch.equal(closed, kept & ~of_input)
    assert torch.equal(opened, kept | of_input)


def test_edge_pruning_without_embedding_nodes_keeps_the_embeddings(tmp_path: Path):
    tensors = random_tensors("edge_pruning", 5)
    cut = {
        key: value[2:] if key.startswith("edges.") else value
        for key, value in tensors.items()
        if key not in ("nodes.tokens", "nodes.positions")
    }
    path = tmp_path / "mask.safetensors"
    save_file({key: value.contiguous() for key, value in cut.items()}, path)
    found = read_edges(path, "edge_pruning", model_of("gpt2"))
    names = dict(zip(found.graph.edges(), found.kept.tolist(), strict=True))
    assert all(names[f"{w}->m0"] for w in ("input", "position"))
    expected = tensors["edges.0.mlp"][2:] * tensors["nodes.0.heads"]
    assert [names[f"a0.h{h}->m0"] for h in range(4)] == expected.bool().tolist()


def test_gpt2_small_has_the_published_shapes_of_masks():
    graph = ResidualGraph(12, 12, 12, attention_bias="heads", position="own")
    found = tensors_of("edge_pruning", graph, torch.ones(32_936, dtype=torch.bool))
    edges = [v for k, v in found.items() if k.startswith("edges.")]
    nodes = [v for k, v in found.items() if k.startswith("nodes.")]
    assert sum(v.numel() for v in edges) == 32_936
    assert sum(v.numel() for v in nodes) == 158
    merged = ResidualGraph(12, 12, 12, separate_qkv=False, attention_bias="heads")
    kept = torch.ones(11_611, dtype=torch.bool)
    found = tensors_of("circuit_breaking", merged, kept)
    assert sum(v.numel() for v in found.values()) == 11_611
    assert found["blocks.11.edge_mask_attentions"].shape == (144, 12)
    assert found["output_mask"].shape == (157,)
    apart = ResidualGraph(12, 12, 12)
    found = tensors_of("auto_circuit", apart, torch.ones(32_491, dtype=torch.bool))
    assert sum(v.numel() for v in found.values()) == 32_491
    assert found["blocks.11.hook_q_input"].shape == (12, 144)
    assert not any(v.any() for v in found.values())
    everything = graph_json(
        apart, torch.ones(32_491, dtype=torch.bool), None, d_model=768
    )
    assert len(everything["edges"]) == 32_491
    assert len(everything["nodes"]) == 158


def test_mlps_beside_attention_read_no_head_of_their_layer():
    graph = ResidualGraph(
        2, 4, 4, separate_qkv=False, parallel=True, attention_bias="heads"
    )
    kept = torch.ones(graph.n_edges, dtype=torch.bool)
    found = tensors_of("circuit_breaking", graph, kept)
    assert found["blocks.1.edge_mask_mlp"].shape == (6,)
    assert found["blocks.1.edge_mask_attentions"].shape == (6, 4)
    apart = replace(graph, separate_qkv=True)
    cfg = graph_json(apart, draw(apart.n_edges, 0), None, d_model=8)["cfg"]
    assert cfg["parallel_attn_mlp"] is True


def test_nodes_are_in_the_graph_when_a_path_leads_through_them():
    graph = ResidualGraph(3, 1, 1)
    kept = ["input->m0", "m0->a1.h0<k>", "a1.h0->m2", "input->a2.h0<q>", "a2.h0->m2"]
    kept += ["m2->logits", "m1->m2", "a0.h0->m1"]
    mask = torch.tensor([name in kept for name in graph.edges()])
    alive = {"input", "m0", "a1.h0", "a2.h0", "m2", "logits"}
    assert live_nodes(graph, mask) == alive
    found = graph_json(graph, mask, None, d_model=8)["nodes"]
    assert {name for name, node in found.items() if node["in_graph"]} == alive


def test_options_about_biases_that_a_model_lacks_are_the_default():
    for name, convention in CONVENTIONS.items():
        assert graph_in(model_of("llama"), convention).value_bias == "heads", name
        assert graph_in(model_of("llama"), convention).attention_bias == "always"
        neox = graph_in(model_of("gpt_neox"), convention)
        assert neox.value_bias == convention.value_bias
        # value biases, no bias of the norm before, and no other output bias
        qwen = graph_in(model_of("qwen2"), convention)
        in_heads = name == "edge_pruning"
        assert qwen.value_bias == ("heads" if in_heads else "output")
        usual = "always" if in_heads else convention.attention_bias
        assert qwen.attention_bias == usual


@pytest.mark.parametrize("name", ["auto_circuit", "circuit_breaking", "disco_gp"])
@pytest.mark.parametrize("kind", ["gpt_neox", "qwen2"])
def test_value_biases_are_where_other_programs_load_them(
    name: str, kind: str, tmp_path: Path
):
    model, convention = model_of(kind), CONVENTIONS[name]
    other = rewritten(kind, convention.value_bias)
    theirs = replace(graph_in(model, convention), value_bias="heads")
    theirs = replace(theirs, n_kv_heads=sites_of(model, ["edges"])[0].graph.n_kv_heads)
    kept = draw(theirs.n_edges, 3)
    path = tmp_path / "mask.safetensors"
    ours = replace(theirs, value_bias=convention.value_bias)
    write_edges(path, name, model, ours, kept, ablation="zero")
    found = read_edges(path, name, model)
    cuts = []
    for of, graph in ((model, found.graph), (other, theirs), (model, theirs)):
        sites = edge_sites(of, graph)
        with exact_norms(of):
            mask = FrozenMask(by_site(sites, found.kept), sites, zero_values(sites))
            with mask.applied(of):
                cuts.append(of(input_ids=ids()).logits)
    torch.testing.assert_close(cuts[0], cuts[1], atol=1e-9, rtol=0)
    assert (cuts[0] - cuts[2]).abs().max() > 0.01
    usual = replace(theirs, attention_bias="always")
    with pytest.raises(UserError, match="treat the value biases otherwise"):
        write_edges(tmp_path / "b", name, model, usual, kept, ablation="zero")


@pytest.mark.parametrize("name", ["mib", "auto_circuit"])
def test_grouped_keys_are_one_edge_a_query_head_there(name: str, tmp_path: Path):
    model = model_of("llama")
    graph = sites_of(model, ["edges"])[0].graph
    assert graph.n_kv_heads == 2
    theirs = graph_in(model, CONVENTIONS[name])
    assert theirs.n_edges > graph.n_edges
    kept = draw(graph.n_edges, 6)
    path = tmp_path / f"mask{ending(name)}"
    write_edges(path, name, model, graph, kept)
    named = dict(zip(graph.edges(), kept.tolist(), strict=True))
    if name == "mib":
        edges = json.loads(path.read_text())["edges"]
        for head in range(4):
            there = edges[f"input->a1.h{head}<v>"]["in_graph"]
            assert there == named[f"input->a1.h{head // 2}<v>"]
        edges["input->a1.h0<k>"]["in_graph"] = not named["input->a1.h0<k>"]
        cfg = json.loads(path.read_text())["cfg"]
        path.write_text(json.dumps({"cfg": cfg, "nodes": {}, "edges": edges}))
        with pytest.raises(
            UserError, match=r"--shared keep\) or ablate \(--shared ablate"
        ):
            read_edges(path, name, model)
        found = read_edges(path, name, model, shared="keep")
        names = dict(zip(graph.edges(), found.kept.tolist(), strict=True))
        assert names["input->a1.h0<k>"]


@pytest.mark.parametrize(
    ("kind", "merged"), [("gpt2", False), ("gpt2", True), ("llama", False)]
)
def test_scores_survive_a_file(kind: str, merged: bool, tmp_path: Path):
    model = model_of(kind)
    graph = sites_of(model, ["edges"], merged_qkv=merged)[0].graph
    scores = torch.randn(graph.n_edges, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "graph.json"
    kept = scores > 0
    write_edges(
        path, "mib", model, graph, kept, scores=scores, ablation="counterfactual"
    )
    found = read_edges(path, "mib", model, scored=True)
    expected = scores if not merged else regrouped(graph, scores, found.graph)
    torch.testing.assert_close(found.scores, expected, rtol=0, atol=0)


def test_scores_of_single_query_heads_are_summed(tmp_path: Path):
    model, path = model_of("llama"), tmp_path / "graph.json"
    theirs = graph_in(model, CONVENTIONS["mib"])
    scores = torch.randn(theirs.n_edges, generator=torch.Generator().manual_seed(0))
    content = graph_json(theirs, scores > 0, scores, d_model=D_MODEL)
    path.write_text(json.dumps(content))
    found = read_edges(path, "mib", model, scored=True)
    there = dict(zip(theirs.edges(), scores.tolist(), strict=True))
    for name, score in zip(found.graph.edges(), found.scores.tolist(), strict=True):
        copies = [name]
        if name.endswith(("<k>", "<v>")):
            stem, group = name[:-3].rsplit(".h", 1)
            heads = (2 * int(group), 2 * int(group) + 1)
            copies = [f"{stem}.h{head}{name[-3:]}" for head in heads]
        assert score == pytest.approx(sum(there[copy] for copy in copies), abs=1e-6)


def test_a_merged_mask_is_copied_to_q_k_and_v(tmp_path: Path):
    model = model_of("gpt2")
    graph = sites_of(model, ["edges"], merged_qkv=True)[0].graph
    kept = draw(graph.n_edges, 7)
    path = tmp_path / "graph.json"
    write_edges(path, "mib", model, graph, kept, ablation="counterfactual")
    edges = json.loads(path.read_text())["edges"]
    for name, is_kept in zip(graph.edges(), kept.tolist(), strict=True):
        reads = (
            [f"{name}<{x}>" for x in "qkv"] if ".h" in name.split("->")[1] else [name]
        )
        assert {edges[read]["in_graph"] for read in reads} == {is_kept}
    apart = sites_of(model, ["edges"])[0].graph
    with pytest.raises(UserError, match="q, k and v are one edge"):
        write_edges(
            tmp_path / "mask.safetensors",
            "circuit_breaking",
            model,
            apart,
            draw(apart.n_edges, 8),
            ablation="mean",
        )


@pytest.mark.parametrize("target", SWITCHES)
@pytest.mark.parametrize("source", SWITCHES)
@pytest.mark.parametrize("ablation", ["zero", "counterfactual"])
def test_a_translation_without_a_loss_gives_the_same_logits(
    source: dict[str, Any], target: dict[str, Any], ablation: str
):
    here, there = (ResidualGraph(2, 4, 4, **switches) for switches in (source, target))
    other = (ids() * 3 + 1) % 60 if ablation == "counterfactual" else None
    names = list(here.edges())
    plain = torch.ones(len(names), dtype=torch.bool)
    for spared in ((), ("a",), ("input", "position"), ("a", "input", "position")):
        open_ones = torch.tensor([name.startswith(spared) for name in names])
        kept = draw(len(names), 9, 0.5) | (open_ones if spared else ~plain)
        told = cut_differences(here, kept, there, ablation)
        before = cut_logits(here, kept, other)
        after = cut_logits(there, translated(here, kept, there), other)
        same = (before - after).abs().max() < 1e-5
        assert bool(same) is (not told), (spared, told)


def test_what_a_format_cannot_say_is_refused_with_what_differs(tmp_path: Path):
    model = model_of("gpt2")
    graph = sites_of(model, ["edges"])[0].graph
    kept = ~draw(graph.n_edges, 0, 0.0)
    kept[[0, 1]] = False
    path = tmp_path / "graph.json"
    told = (
        r"2 edges treat the position embedding otherwise \(merged in the mask, always"
    )
    with pytest.raises(UserError, match=told):
        write_edges(path, "mib", model, graph, kept, ablation="mean")
    assert not path.exists()
    write_edges(path, "mib", model, graph, kept, ablation="counterfactual")
    kept = ~draw(graph.n_edges, 0, 0.0)
    kept[list(graph.edges()).index("a0.h0->logits")] = False
    told = r"1 ablated edges from heads treat the value biases otherwise \(heads in the"
    with pytest.raises(UserError, match=told):
        write_edges(path, "auto_circuit", model, graph, kept, ablation="zero")
    as_there = replace(graph, value_bias="output_with_norm")
    for name in ("mib", "auto_circuit"):
        path = tmp_path / f"same{ending(name)}"
        write_edges(path, name, model, as_there, kept, ablation="zero")
    tensors = tmp_path / "mask.safetensors"
    told = "1 ablated edges from heads treat attention's output bias otherwise"
    with pytest.raises(UserError, match=told):
        write_edges(tensors, "disco_gp", model, graph, kept, ablation="zero")
    write_edges(
        tensors, "disco_gp", model, graph, kept, ablation="zero", allow_difference=True
    )
    assert tensors.exists()


def _json(**changes: Any) -> str:
    graph = graph_in(model_of("gpt2"), CONVENTIONS["mib"])
    found = graph_json(graph, draw(graph.n_edges, 1), None, d_model=D_MODEL)
    for key, value in changes.items():
        found[key] = {**found[key], **value}
        found[key] = {k: v for k, v in found[key].items() if v is not None}
    return json.dumps(found)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "no EAP-IG graph"),
        (
            _json(cfg={"n_heads": 12, "d_model": 8}),
            "n_heads 12 against 4 here; d_model 8",
        ),
        (
            _json(edges={"input->m0": None}),
            "110 edges .* got 109: 1 missing, first input->m0",
        ),
        (_json(edges={"m9->logits": {}}), "1 unknown, first 'm9->logits'"),
        (
            _json(edges={"input->m0": {"score": 1, "in_graph": 0.3}}),
            "got 0.3 at input->m0",
        ),
        (_json(edges={"input->m0": {"score": 1}}), "in_graph, got None at input->m0"),
        (_json(nodes={"m0": {"neurons": [True, False]}}), "what m0 writes out"),
    ],
)
def test_a_malformed_graph_is_refused_with_what_differs(
    text: str, told: str, tmp_path: Path
):
    path = tmp_path / "graph.json"
    path.write_text(text)
    with pytest.raises(UserError, match=told) as refused:
        read_edges(path, "mib", model_of("gpt2"))
    assert "graph.json" in str(refused.value)


def test_a_graph_without_masks_or_without_scores_says_what_to_give(tmp_path: Path):
    model, path = model_of("gpt2"), tmp_path / "graph.json"
    graph = graph_in(model, CONVENTIONS["mib"])
    cfg = {"n_layers": 2, "n_heads": 4}
    for key, told in (("score", "give --n_kept"), ("in_graph", "leave --n_kept out")):
        edges = {name: {key: 1} for name in graph.edges()}
        path.write_text(json.dumps({"cfg": cfg, "nodes": {}, "edges": edges}))
        with pytest.raises(UserError, match=told):
            read_edges(path, "mib", model, scored=key == "in_graph")
        kept, scores = read_graph_json(path, graph, d_model=D_MODEL)
        assert (kept is None) is (key == "score")
        assert (scores is None) is (key == "in_graph")


@pytest.mark.parametrize("name", LAYOUTS)
def test_malformed_tensors_are_refused_with_what_differs(name: str, tmp_path: Path):
    model, path = model_of("gpt2"), tmp_path / "mask.safetensors"
    good = random_tensors(name, 3)
    first, *_ = good

    def refused(tensors: dict[str, Tensor]) -> str:
        save_file(tensors, path)
        with pytest.raises(UserError) as error:
            read_edges(path, name, model)
        return str(error.value)

    assert f"lacks {first}" in refused({k: v for k, v in good.items() if k != first})
    assert "unknown what" in refused({**good, "what": torch.ones(2)})
    wrong = refused({**good, first: torch.ones(3, 7)})
    assert f"{first} has shape (3, 7), this model's is" in wrong
    if LAYOUTS[name].above is None:
        soft = good[first].clone()
        soft[0, 0] = 0.25
        edges = {
            k: torch.ones_like(v) for k, v in good.items() if k.startswith("nodes")
        }
        assert "got 0.25 at input->a0.h0" in refused({**good, **edges, first: soft})


def test_arrays_are_read_without_unpickling_and_other_files_are_not(tmp_path: Path):
    model, tensors = model_of("gpt2"), random_tensors("circuit_breaking", 4)
    path = tmp_path / "mask.npz"
    np.savez(path, **{key: value.numpy() for key, value in tensors.items()})
    graph = graph_in(model, CONVENTIONS["circuit_breaking"])
    expected = kept_by("circuit_breaking", graph, tensors, path)
    assert torch.equal(read_edges(path, "circuit_breaking", model).kept, expected)
    np.savez(path, output_mask=np.array([{"code": 1}], dtype=object))
    with pytest.raises(UserError, match=r"cannot read .*mask\.npz"):
        read_edges(path, "circuit_breaking", model)
    path.write_bytes(b"PK but not really")
    with pytest.raises(UserError, match=r"cannot read .*mask\.npz"):
        read_edges(path, "circuit_breaking", model)
    other = tmp_path / "mask.pt"
    torch.save(tensors, other)
    with pytest.raises(UserError, match="may hold code"):
        read_edges(other, "circuit_breaking", model)


def test_masks_of_encoders_belong_to_no_other_program(tmp_path: Path):
    model = tiny_model("bert").requires_grad_(False)
    with pytest.raises(UserError, match="norms on its residual stream"):
        graph_in(model, CONVENTIONS["mib"])
    sites = sites_of(model, ["edges"])
    kept = draw(sites[0].graph.n_edges, 1)
    path = tmp_path / "edges.json"
    write_named_edges(path, sites[0].graph, kept)
    found = read_edges(path, "edges", model)
    keep = by_site(sites, found.kept)
    assert torch.equal(flat_gates(sites, keep), kept)
    inputs = tiny_inputs(model)
    mask = FrozenMask(keep, sites, zero_values(sites))
    with mask.applied(model):
        assert torch.isfinite(model(**inputs).last_hidden_state).all()
