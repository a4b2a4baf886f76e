"""Damaged files: changed bytes, changed trees of JSON, and anything at all."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

PIECES: list[bytes] = [
    b"[" * 100_000,
    b'{"a":' * 2_000,
    b"1" * 5_000,
    b"1e999",
    b"NaN",
    b"-Infinity",
    b'"\\ud800"',
    b"\\udfff",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\xe2\x80\xa8",
    b"\xc3",
    b"\x1f\x8b\x08",
    b'""',
    b"null",
    b",",
    b"\t",
    b"-1",
    b"\xff" * 8,
    b"= = = " * 2_000,
]
"""What is put into files: what parsers of text, JSON and tensors stumble over."""
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**70, 10**400, 0.5, -1.5, 1e308),
    *("", "x", "none", "0", "../x", "\0", "\ud800", "NaN", "a" * 3_000),
    *([], {}, [[]], [None], {"x": 1}, [1, 2], ["a"], [[[[[[1]]]]]], {"": {"": []}}),
]
"""What takes the place of a node of a JSON tree."""
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(VALUES),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes, *, is_json: bool) -> bytes:
    """The content of a file with one or two faults, or something else altogether."""
    kinds = ["bytes", "bytes", "anything"] + ["tree"] * 5 * is_json
    kind = draw(st.sampled_from(kinds))
    if kind == "tree":
        return draw(changed_tree(content))
    if kind == "bytes":
        for _ in range(draw(st.integers(1, 2))):
            content = draw(changed_bytes(content))
        return content
    anything = st.binary(max_size=60) | st.sampled_from([b"", *PIECES])
    return draw(anything | ANY_JSON.map(as_json) if is_json else anything)


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A byte flipped, a piece cut out, doubled or put in, or the end cut off."""
    first = draw(st.integers(0, len(content)))
    last = min(len(content), first + draw(st.integers(1, 40)))
    piece = content[first:last]
    new = draw(
        st.sampled_from(["flip", "cut", "twice", "end", "put"])
        if piece
        else st.just("put")
    )
    if new == "flip":
        piece = bytes([piece[0] ^ (1 << draw(st.integers(0, 7)))]) + piece[1:]
    elif new == "cut":
        piece = b""
    elif new == "twice":
        piece += piece
    elif new == "end":
        return content[:first]
    else:
        piece = draw(st.sampled_from(PIECES)) + piece
    return content[:first] + piece + content[last:]


@st.composite
def changed_tree(draw: st.DrawFn, content: bytes) -> bytes:
    """JSON, or a line of JSON Lines, with a node replaced, removed or doubled."""
    lines = content.decode().splitlines()
    try:
        trees, ends = [json.loads(content)], b""
    except json.JSONDecodeError:
        trees, ends = [json.loads(line) for line in lines if line], b"\n"
    number = draw(st.integers(0, len(trees) - 1))
    value = st.sampled_from(VALUES)
    tree = {"root": copy.deepcopy(trees[number])}
    for _ in range(draw(st.integers(1, 2))):
        nodes = list(_nodes(tree))
        if not nodes:
            break
        parent, key = nodes[draw(st.integers(0, len(nodes) - 1))]
        match draw(st.sampled_from(["replace"] * 3 + ["remove", "double", "add"])):
            case "replace":
                parent[key] = copy.deepcopy(draw(value))
            case "remove" if parent is not tree:
                del parent[key]
            case "double" if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            case "add" if isinstance(parent[key], dict):
                parent[key]["more"] = copy.deepcopy(draw(value))
            case "add" if isinstance(parent[key], list):
                parent[key].append(copy.deepcopy(draw(value)))
    trees[number] = tree["root"]
    return b"\n".join(map(as_json, trees)) + ends


def as_json(value: Any) -> bytes:
    """JSON as Python writes it, NaN and halves of surrogate pairs included."""
    return json.dumps(value).encode()


def _nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Every node as its parent and its key, breadth first: shallow ones come first."""
    found: list[tuple[Any, Any]] = []
    parents = [tree]
    while parents:
        parent = parents.pop(0)
        keys = list(parent) if isinstance(parent, dict) else range(len(parent))
        for key in keys:
            found.append((parent, key))
            if isinstance(parent[key], dict | list):
                parents.append(parent[key])
    return found
