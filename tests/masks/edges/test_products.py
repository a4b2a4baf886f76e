"""Products of gates and rows: the compiled ones against double precision."""

import math
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuitcut.masks.edges import products as edge_products
from circuitcut.masks.edges.buffers import spread_rows
from circuitcut.masks.edges.gating import edge_gated
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.storage import compiled
from tests.models.tiny import tiny_inputs, tiny_model

SOURCE = Path(edge_products.__file__).with_suffix(".cpp")
no_compiler = pytest.mark.skipif(
    shutil.which("c++") is None, reason="no C++ compiler is installed"
)
OLDER = {
    "as it is": (),
    "AVX2": ("-mno-avx512f",),
    "SSE": ("-march=x86-64",),
}


@pytest.fixture(autouse=True)
def fresh():
    """Nothing loaded before stays so, and nothing loaded here does."""
    edge_products._library.cache_clear()
    yield
    edge_products._library.cache_clear()


def rows_of(n: int, n_tokens: int, width: int) -> Tensor:
    """Rows that are not adjacent in memory, with NaN between them."""
    rows = spread_rows(torch.empty(0), n, n_tokens, width)
    between(rows).fill_(math.nan)
    return rows.normal_()


def between(rows: Tensor) -> Tensor:
    """What lies behind every row but the last, which no product may touch."""
    length = rows[0].numel()
    size = len(rows) - 1, rows.stride(0) - length
    return rows.as_strided(size, (rows.stride(0), 1), length)


def check(result: Tensor, expected: Tensor, n_terms: int) -> None:
    """Single precision of sums of that many terms."""
    assert bool(result.isfinite().all())
    bound = 1e-6 * (4 + math.sqrt(n_terms))
    assert (result - expected).abs().max() <= bound * (1 + expected.abs().max())


def check_all(
    n_reads: int, n_writers: int, n_tokens: int, width: int, n_inner: int
) -> None:
    torch.manual_seed(n_reads + 100 * n_writers + n_tokens)
    rows, d_rows = (rows_of(n_writers, n_tokens, width) for _ in range(2))
    gates = (
        torch.randn(n_writers, n_reads).T
        if width % 2
        else torch.rand(n_reads, n_writers)
    )
    reads, squares = rows_of(n_reads, n_tokens, width), torch.empty(n_reads, n_tokens)
    edge_products.mix(reads, gates, rows)
    expected = torch.einsum("rk,ktd->rtd", gates.double(), rows.double())
    check(reads, expected, n_writers)
    plain = reads.clone()
    edge_products.mix(reads, gates, rows, squares)
    check(reads, plain.double(), n_writers)
    check(squares, expected.square().sum(-1), width)

    d_reads = torch.randn(n_reads, n_tokens, width)
    before = d_rows.double()
    through = torch.einsum("rk,rtd->ktd", gates.double(), d_reads.double())
    inner = torch.einsum("rtd,ktd->rk", d_reads.double(), rows.double())
    d_gates = edge_products.through_reads(d_reads, gates, rows, d_rows)
    check(d_gates, inner, n_tokens * width)
    check(d_rows, before + through, n_reads)
    assert edge_products.through_reads(d_reads, gates, None, d_rows, add=False) is None
    check(d_rows, through, n_reads)
    check(
        edge_products.through_reads(d_reads, gates, rows, None),
        inner,
        n_tokens * width,
    )

    left = torch.randn(n_tokens, n_reads, n_inner).transpose(0, 1)
    right = torch.randn(n_reads, n_inner, width)
    products = torch.bmm(left.double(), right.double())
    edge_products.products_into(reads, left, right)
    check(reads, products, n_inner)
    factors = torch.randn(n_tokens, n_reads).T
    edge_products.products_into(reads, left, right, factors)
    check(reads, products * (1 + factors[..., None].double()), n_inner)
    for values in (rows, d_rows, reads):
        assert bool(between(values).isnan().all())


@no_compiler
@settings(max_examples=40, deadline=None)
@given(
    n_reads=st.integers(1, 40),
    n_writers=st.integers(1, 40),
    n_tokens=st.integers(1, 9),
    width=st.sampled_from([1, 7, 16, 32, 33, 64, 100, 256, 257, 384, 600]),
    n_threads=st.integers(1, 3),
)
def test_compiled_products_of_any_shape(
    n_reads: int, n_writers: int, n_tokens: int, width: int, n_threads: int
):
    assert edge_products._library() is not None
    n_threads_before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        check_all(n_reads, n_writers, n_tokens, width, n_inner=1 + n_writers % 9)
    finally:
        torch.set_num_threads(n_threads_before)


@no_compiler
@pytest.mark.parametrize("name", OLDER)
def test_compiled_for_processors_with_shorter_registers(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    if name != "as it is" and platform.machine() != "x86_64":
        pytest.skip("only x86-64 has these")
    monkeypatch.setattr(compiled, "FLAGS", (*compiled.FLAGS, *OLDER[name]))
    assert edge_products._library() is not None
    for shape in [(1, 1, 1, 16), (14, 27, 5, 768), (37, 40, 4, 396), (6, 7, 3, 33)]:
        check_all(*shape, n_inner=5)


def test_products_of_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(compiled.SWITCH, "0")
    assert edge_products._library() is None
    for shape in [(1, 1, 1, 16), (14, 27, 5, 768), (37, 40, 4, 396), (6, 7, 3, 33)]:
        check_all(*shape, n_inner=5)


@no_compiler
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "bert"])
@pytest.mark.parametrize("store_reads", [True, False])
def test_a_step_is_the_same_compiled_or_not(
    kind: str, store_reads: bool, monkeypatch: pytest.MonkeyPatch
):
    task = "token_classification" if kind == "bert" else "causal_lm"
    model: Any = tiny_model(kind, task).requires_grad_(False)
    inputs = tiny_inputs(model)
    stack = EdgeStack(ResidualModel(model), store_reads=store_reads)
    torch.manual_seed(0)
    keep = torch.rand(stack.model.graph.n_edges).requires_grad_()
    results = []
    for switch in ("1", "0"):
        monkeypatch.setenv(compiled.SWITCH, switch)
        edge_products._library.cache_clear()
        assert (edge_products._library() is None) == (switch == "0")
        with edge_gated(stack, keep):
            logits = model(**inputs).logits
        (grad,) = torch.autograd.grad(logits.square().sum(), keep)
        results.append((logits.detach(), grad))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    size = float(results[1][1].abs().max())
    torch.testing.assert_close(
        results[0][1], results[1][1], atol=1e-5 * size, rtol=1e-5
    )


def test_double_precision_is_left_to_torch():
    rows, gates = torch.randn(3, 4, 32).double(), torch.rand(2, 3).double()
    reads = torch.empty(2, 4, 32).double()
    assert edge_products._compiled(reads, gates, rows) is None
    edge_products.mix(reads, gates, rows)
    torch.testing.assert_close(reads, torch.einsum("rk,ktd->rtd", gates, rows))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(tmp_path))
    return tmp_path / "compiled"


@no_compiler
def test_a_source_is_compiled_once_and_anew_when_it_changes(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    loaded = compiled.library(source, {})
    assert loaded is not None
    assert loaded.one() == 1
    assert "Compiled one.cpp" in caplog.text
    caplog.clear()
    assert compiled.library(source, {}) is not None
    assert caplog.text == ""
    assert len(list(cache.glob("*.so"))) == 1
    source.write_text('extern "C" int one() { return 2; }\n')
    changed = compiled.library(source, {})
    assert changed is not None
    assert changed.one() == 2
    assert len(list(cache.glob("*.so"))) == 2


def test_without_a_compiler_a_line_says_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiled.library(SOURCE, {}) is None
    assert "No C++ compiler is installed" in caplog.text
    assert not cache.exists()


@no_compiler
def test_a_source_that_cannot_be_compiled_is_named(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    source = tmp_path / "wrong.cpp"
    source.write_text("this is not C++\n")
    assert compiled.library(source, {}) is None
    assert "wrong.cpp was not compiled" in caplog.text
    assert "error" in caplog.text
    assert not cache.exists()


@no_compiler
@pytest.mark.parametrize("file", ["so", "sha256"])
def test_a_damaged_file_in_the_cache_is_named_and_made_anew(
    file: str, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    source, compiler = tmp_path / "one.cpp", shutil.which("c++")
    source.write_text('extern "C" int one() { return 1; }\n')
    assert compiler is not None
    path = compiled._compiled_file(source, compiler)
    other = path.with_suffix(f".{file}")
    other.write_bytes(other.read_bytes()[:50])
    loaded = compiled.library(source, {})
    assert loaded is not None
    assert loaded.one() == 1
    assert f"{path} is damaged" in caplog.text
