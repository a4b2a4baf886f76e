"""DOT and GraphML: every edge once, read back by a library and by a small parser."""

import io
import re

import networkx
import pytest
import torch

from circuitcut.masks.formats.drawings import dot, graphml
from circuitcut.models.residual.graph import ResidualGraph

GRAPH = ResidualGraph(2, 3, 1, position="own")


@pytest.mark.parametrize("apart", [True, False])
def test_graphml_is_read_by_networkx_as_the_whole_graph(apart: bool):
    graph = ResidualGraph(2, 3, 3, separate_qkv=apart)
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(graph.n_edges, generator=rng)
    text = graphml(graph, scores > 0, scores)
    found = networkx.read_graphml(io.StringIO(text), force_multigraph=True)
    assert list(found.nodes) == [*graph.writers(), "logits"]
    assert found.nodes["a1.h2"] == {"kind": "head", "layer": 1}
    assert found.nodes["logits"]["layer"] == 2
    edges = {data["name"]: data for _, _, data in found.edges(data=True)}
    assert len(found.edges) == len(edges) == graph.n_edges
    assert set(edges) == set(graph.edges())
    for name, score in zip(graph.edges(), scores.tolist(), strict=True):
        assert edges[name]["kept"] is (score > 0)
        assert edges[name]["score"] == pytest.approx(score)
    assert ("input", "a0.h0") in found.edges()
    name = "input->a0.h0<k>" if apart else "input->a0.h0"
    assert edges[name]["reads"] == ("k" if apart else "")
    without = networkx.read_graphml(io.StringIO(graphml(graph, scores > 0, None)))
    assert not any("score" in data for *_, data in without.edges(data=True))


def test_dot_has_a_line_an_edge_and_stands_nodes_of_a_layer_side_by_side():
    names = list(GRAPH.edges())[::7]
    scores = {name: 0.5 * i for i, name in enumerate(names[1:])}
    text = dot(names, scores)
    lines = re.findall(r'^  "(\S+)" -> "(\S+)" \[(.*)\];$', text, re.MULTILINE)
    assert len(lines) == len(names)
    for name, (source, target, wanted) in zip(names, lines, strict=True):
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', wanted))
        reads = attributes.get("label")
        assert name == f"{source}->{target}" + (f"<{reads}>" if reads else "")
        assert attributes["tooltip"].startswith(name)
        score = attributes.get("score")
        assert scores.get(name) == (None if score is None else float(score))
    ranks = [
        re.findall(r'"(\S+)"', row) for row in re.findall("rank=same; (.*) }", text)
    ]
    assert ranks[0] == ["input", "position"]
    assert ranks[-1] == ["logits"]
    drawn = [node for row in ranks for node in row]
    assert sorted(drawn) == sorted({n for s, t, _ in lines for n in (s, t)})
    assert text.count("{") == text.count("}")
