"""The picture of a circuit: well-formed, complete, and every line leads upwards."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.reports.circuits.edge_names import edge_rows, name_sentences
from circuitcut.reports.circuits.layer_grid import edges_by_layers
from circuitcut.reports.circuits.layout import SCREEN, Layout, layout_of
from circuitcut.reports.circuits.picture import caption, circuit_svg
from circuitcut.reports.circuits.svg import READERS

SVG = "{http://www.w3.org/2000/svg}"
GPT2 = ResidualGraph(12, 12, 12)
DEEP = ResidualGraph(30, 9, 3)


def circuit(
    graph: ResidualGraph, n: int, *, kept: bool = False, scored: bool = True
) -> dict[str, Any]:
    names = list(graph.edges())
    chosen = names[:: max(1, len(names) // n)][:n]
    return {
        "kept": kept,
        "n_edges": graph.n_edges,
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "edges": chosen,
        "scores": [i / 7 for i in range(len(chosen))] if scored else None,
    }


def edges_in(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [g for g in root.iter(f"{SVG}g") if g.get("class") == "edge"]


GRAPHS = [
    GPT2,
    ResidualGraph(2, 8, 8),
    ResidualGraph(3, 4, 2, separate_qkv=False, parallel=True),
    ResidualGraph(2, 2, 2, position="own"),
]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("n", [1, 12, 100, 1000])
def test_every_edge_has_one_line_and_says_its_name_and_score(
    graph: ResidualGraph, n: int
):
    drawn = circuit(graph, n)
    root = ElementTree.fromstring(circuit_svg(drawn, standalone=True))
    edges = edges_in(root)
    titles = [edge.findall(f"{SVG}title") for edge in edges]
    assert [len(found) for found in titles] == [1] * len(drawn["edges"])
    for name, score, edge, (title,) in zip(
        drawn["edges"], drawn["scores"], edges, titles, strict=True
    ):
        said, _, value = (title.text or "").partition(": ")
        assert said == name
        assert float(value.replace(",", "")) == pytest.approx(score, abs=1e-3)
        (line,) = [p for p in edge.findall(f"{SVG}path") if p.get("class") == "line"]
        reads = name.rstrip(">")[-1]
        whole = {"logits": "logits", "m": "mlp", "a": "head"}
        target = name.split("->")[1]
        kind = reads if "<" in name else whole.get(target) or whole[target[0]]
        assert line.get("stroke") == READERS[kind][1]
    boxes = [g for g in root.iter(f"{SVG}g") if g.get("class") == "node"]
    ends = {
        node.partition("<")[0] for name in drawn["edges"] for node in name.split("->")
    }
    assert {box.findtext(f"{SVG}text") for box in boxes} == ends


@pytest.mark.parametrize("graph", GRAPHS)
def test_lines_lead_up_and_nodes_do_not_overlap(graph: ResidualGraph):
    drawn = circuit(graph, 1000)
    root = ElementTree.fromstring(circuit_svg(drawn, standalone=True))
    for line in root.iter(f"{SVG}path"):
        if line.get("class") == "line":
            numbers = [float(x) for x in re.findall(r"-?[\d.]+", line.get("d") or "")]
            assert numbers[1] > numbers[-1]
    layout = Layout.of(graph.n_layers, graph.n_heads)
    places = [layout.place(node) for node in layout.nodes()]
    wide, high = layout.box
    assert all(
        abs(x - u) > wide or abs(y - v) > high
        for i, (x, y) in enumerate(places)
        for u, v in places[:i]
    )
    assert all(0 < x < layout.width and 0 < y < layout.height for x, y in places)


def test_many_edges_are_thin_and_faint_and_keep_their_words_few():
    few, many = (circuit_svg(circuit(GPT2, n)) for n in (12, 1000))

    def looks(text: str, key: str) -> float:
        return float(re.findall(rf'stroke-{key}="([\d.]+)"/>', text)[-1])

    assert looks(few, "opacity") > 2 * looks(many, "opacity")
    assert 'class="hit"' in few
    assert 'class="hit"' not in many
    assert len(many) < 400_000
    words = [len(re.findall("<text", text)) for text in (few, many)]
    assert words[1] <= 1 + len(READERS) + 12 + 158


def test_nodes_without_edges_are_dots_where_there_are_few():
    few = circuit_svg(circuit(ResidualGraph(2, 8, 8), 3))
    assert few.count("<circle") + few.count('class="node"') >= 18
    assert "<circle" not in circuit_svg(circuit(ResidualGraph(32, 16, 8), 40))


def test_a_narrow_box_has_the_number_of_its_head_and_its_name_under_the_pointer():
    graph = ResidualGraph(2, 32, 8)
    drawn = circuit(graph, 1) | {"edges": ["a0.h17->m1"], "scores": None}
    text = circuit_svg(drawn)
    assert "<title>a0.h17: 1 edge</title>" in text
    assert ">h17</text>" in text


def test_the_caption_says_which_edges_are_drawn():
    said = caption(circuit(GPT2, 12, kept=True, scored=False))
    assert said.startswith("The 12 kept edges of 32,491; the other 32,479 are ablated.")
    assert "score" not in said
    cut = circuit(GPT2, 5)
    assert caption(cut).startswith("The 5 ablated edges of 32,491; the other 32,486")
    assert "5 ablated of 32,491 edges" in circuit_svg(cut)


def test_a_page_needs_no_address_and_a_file_has_one():
    drawn = circuit(GPT2, 12)
    assert "http" not in circuit_svg(drawn)
    assert 'xmlns="http://www.w3.org/2000/svg"' in circuit_svg(drawn, standalone=True)


def drawn(edges: list[str], *, kept: bool = False, scores: Any = None) -> Any:
    """A circuit of the deep graph with these edges."""
    return circuit(DEEP, 1, kept=kept) | {"edges": edges, "scores": scores}


FAR = [f"a{2 * i}.h{i}->m{2 * i + 1}" for i in range(8)]
"""Eight edges with their ends in sixteen layers."""


@pytest.mark.parametrize(
    "edges", [FAR, ["input->logits"], ["m0->m29"], ["a29.h8->logits"]]
)
def test_eight_edges_of_a_deep_model_fit_a_screen_without_its_empty_layers(
    edges: list[str],
):
    layout = layout_of(drawn(edges))
    assert layout.width <= SCREEN[0]
    assert layout.height <= SCREEN[1]
    ends = [node for edge in edges for node in edge.split("->")]
    layers = {int(n[1:].split(".")[0]) for n in ends if n not in ("input", "logits")}
    assert set(layout.layers) == layers
    hidden = [i for low, high, _ in layout.folded() for i in range(low, high + 1)]
    assert sorted({*hidden, *layers}) == list(range(30))
    assert len(hidden) + len(layers) == 30
    text = circuit_svg(drawn(edges))
    assert all(f">layer {layer}<" in text for layer in layers)


@pytest.mark.parametrize("kept", [True, False])
def test_the_edge_that_the_ranking_chose_first_has_the_thickest_line(kept: bool):
    scores = [-3.0, 2.0, 0.0, float("inf")]
    circuits = drawn(FAR[:4], kept=kept, scores=scores)
    found = re.findall(r'class="line".*?stroke-width="([\d.]+)"', circuit_svg(circuits))
    widths = [float(width) for width in found]
    if kept:  # infinite: outside of the ranking, always kept
        assert widths[0] < widths[2] < widths[1] <= widths[3]
    else:
        assert widths[1] < widths[2] < widths[0]
    assert max(widths[:3]) > 3 * min(widths[:3])


def test_without_scores_or_with_equal_ones_all_lines_are_equal():
    for scores in (None, [1.0] * 8):
        text = circuit_svg(drawn(FAR, scores=scores))
        widths = re.findall(r'class="line".*?stroke-width="([\d.]+)"', text)
        assert len(widths) == 8
        assert len(set(widths)) == 1


@pytest.mark.parametrize("graph", [DEEP, ResidualGraph(48, 6, 6)])
def test_many_edges_of_a_deep_model_are_counted_by_layer_on_one_screen(
    graph: ResidualGraph,
):
    many = circuit(graph, 1400, kept=True)
    root = ElementTree.fromstring(circuit_svg(many, standalone=True))
    assert float(root.get("width", "")) <= SCREEN[0]
    assert float(root.get("height", "")) <= SCREEN[1]
    cells = [g for g in root.iter(f"{SVG}g") if g.get("class") == "cell"]
    titles = [cell.findtext(f"{SVG}title") or "" for cell in cells]
    counts = [
        int(re.findall(r": ([\d,]+) edge", t)[0].replace(",", "")) for t in titles
    ]
    assert sum(counts) == len(many["edges"])
    assert len(cells) == len(edges_by_layers(many))
    assert edges_in(root) == []
    assert "Each cell counts the edges" in caption(many)


def test_a_cell_counts_the_edges_between_its_two_layers_and_names_the_strongest():
    names = [
        "a3.h1->a7.h0<q>",
        "m3->m7",
        "a3.h2->a7.h8<v>",
        "input->m7",
        "a3.h1->logits",
    ]
    circuits = drawn(names, kept=True, scores=[0.0, 5.0, 1.0, 2.0, 3.0])
    assert edges_by_layers(circuits) == {
        ("3", "7"): ["m3->m7", "a3.h2->a7.h8<v>", "a3.h1->a7.h0<q>"],
        ("input", "7"): ["input->m7"],
        ("3", "logits"): ["a3.h1->logits"],
    }


def test_edges_are_listed_by_name_at_any_number():
    few = drawn(FAR[:2], scores=[2.0, -1.0])
    assert edge_rows({"circuit": few}) == [
        {"ablated edge": FAR[1], "score": -1.0},
        {"ablated edge": FAR[0], "score": 2.0},
    ]
    assert name_sentences({"circuit": few}) == [
        f"Edges ablated (2, strongest first): {FAR[1]}, {FAR[0]}."
    ]
    many = circuit(DEEP, 1400, kept=True)
    listed = ", ".join(
        r["names, strongest first"] for r in edge_rows({"circuit": many})
    )
    assert sorted(listed.split(", ")) == sorted(many["edges"])
    (said,) = name_sentences({"circuit": many})
    assert said.endswith("more, listed below.")
