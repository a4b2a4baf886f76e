"""Where each family keeps the weights of its MLPs in a checkpoint, as one table.

Names are those of the safetensors files, without the prefix of the base model. A family
that is not in the table is one more line.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from circuitcut.storage.errors import UserError


@dataclass(frozen=True)
class MlpNames:
    """Names of the tensors of one MLP; `{layer}` and `{expert}` are numbers."""

    w_in: str
    w_out: str
    gate: str | None = None
    """None: a plain MLP, or one whose gate stands in the first rows of `w_in`."""
    fused: bool = False
    """`w_in` holds the gate's rows, then those of w_in."""
    transposed: bool = False
    """Conv1D: stored as (inputs, outputs), where Linear has (outputs, inputs)."""

    @property
    def is_gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.fused or self.gate is not None


@dataclass(frozen=True)
class Layout:
    """Names of one family's tensors, and what its norms do."""

    mlps: tuple[MlpNames, ...]
    """A layer has all of these that its checkpoint holds: a dense MLP, experts."""
    norm: str | None
    """Gain of the norm whose output the MLP reads; None: it has no such gain."""
    centred: bool = False
    """The residual stream is read through LayerNorms, which subtract the mean."""
    gain_offset: float = 0.0
    """Added to the gains of all norms."""
    embedding: str | None = "embed_tokens.weight"
    """Of tokens; None: the family is no language model of the left context."""
    unembedding: str = "lm_head.weight"
    """Without the prefix of the base model; where it is missing, weights are tied."""
    final_norm: str | None = "norm.weight"

    @property
    def is_gated(self) -> bool:
        """Whether its MLPs have gates."""
        return self.mlps[0].is_gated


def _gated(module: str, gate: str, w_in: str, w_out: str) -> MlpNames:
    place = f"layers.{{layer}}.{module}."
    return MlpNames(
        w_in=f"{place}{w_in}.weight",
        w_out=f"{place}{w_out}.weight",
        gate=f"{place}{gate}.weight",
    )


_MLP = _gated("mlp", "gate_proj", "up_proj", "down_proj")
_EXPERTS = _gated("mlp.experts.{expert}", "gate_proj", "up_proj", "down_proj")
_SHARED_EXPERT = _gated("mlp.shared_expert", "gate_proj", "up_proj", "down_proj")
_LLAMA = Layout((_MLP,), "layers.{layer}.post_attention_layernorm.weight")
_GEMMA = replace(_LLAMA, gain_offset=1.0)
_GEMMA2 = replace(_GEMMA, norm="layers.{layer}.pre_feedforward_layernorm.weight")
# OLMo's norms have no gain. OLMo 2 and 3 have a norm behind the MLP instead of before.
_OLMO = Layout((_MLP,), None, centred=True, final_norm=None)
_OLMO2 = replace(_LLAMA, norm=None)
_PHI3 = replace(
    _LLAMA,
    mlps=(
        MlpNames(
            "layers.{layer}.mlp.gate_up_proj.weight",
            "layers.{layer}.mlp.down_proj.weight",
            fused=True,
        ),
    ),
)
_MIXTRAL = replace(
    _LLAMA, mlps=(_gated("block_sparse_moe.experts.{expert}", "w1", "w3", "w2"),)
)
_QWEN_MOE = replace(_LLAMA, mlps=(_MLP, _EXPERTS, _SHARED_EXPERT))
_GPT2 = Layout(
    (
        MlpNames(
            "h.{layer}.mlp.c_fc.weight", "h.{layer}.mlp.c_proj.weight", transposed=True
        ),
    ),
    "h.{layer}.ln_2.weight",
    centred=True,
    embedding="wte.weight",
    final_norm="ln_f.weight",
)
_GPT_NEOX = Layout(
    (
        MlpNames(
            "layers.{layer}.mlp.dense_h_to_4h.weight",
            "layers.{layer}.mlp.dense_4h_to_h.weight",
        ),
    ),
    "layers.{layer}.post_attention_layernorm.weight",
    centred=True,
    embedding="embed_in.weight",
    unembedding="embed_out.weight",
    final_norm="final_layer_norm.weight",
)
_PHI = Layout(
    (MlpNames("layers.{layer}.mlp.fc1.weight", "layers.{layer}.mlp.fc2.weight"),),
    "layers.{layer}.input_layernorm.weight",
    centred=True,
    final_norm="final_layernorm.weight",
)
# In post-norm encoders the MLP reads the output of a LayerNorm, gain and all: there is
# nothing to fold, and both conventions are one.
_BERT = Layout(
    (
        MlpNames(
            "encoder.layer.{layer}.intermediate.dense.weight",
            "encoder.layer.{layer}.output.dense.weight",
        ),
    ),
    None,
    embedding=None,
)
_MODERNBERT = Layout(
    (
        MlpNames(
            "layers.{layer}.mlp.Wi.weight", "layers.{layer}.mlp.Wo.weight", fused=True
        ),
    ),
    "layers.{layer}.mlp_norm.weight",
    centred=True,
    embedding=None,
    final_norm="final_norm.weight",
)
_DISTILBERT = replace(
    _BERT,
    mlps=(
        MlpNames(
            "transformer.layer.{layer}.ffn.lin1.weight",
            "transformer.layer.{layer}.ffn.lin2.weight",
        ),
    ),
)

LAYOUTS: Mapping[str, Layout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "olmo": _OLMO,
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "phi3": _PHI3,
    "mixtral": _MIXTRAL,
    "qwen2_moe": _QWEN_MOE,
    "qwen3_moe": _QWEN_MOE,
    "olmoe": _QWEN_MOE,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "phi": _PHI,
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "modernbert": _MODERNBERT,
    "distilbert": _DISTILBERT,
}
"""`model_type` of a configuration -> its layout."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
_EXPERTS_OF_LAYER = ("num_local_experts", "num_experts", "n_routed_experts")


def layout_named(model_type: str) -> Layout:
    """The table's entry for a model type.

    Raises:
        UserError: When the type is not in the table.
    """
    if model_type not in LAYOUTS:
        raise UserError(
            f"weights of model type {model_type!r} cannot be classified: it has no "
            f"known MLPs on a residual stream; use one of {', '.join(sorted(LAYOUTS))}"
        )
    return LAYOUTS[model_type]


def n_layers_of(config: Mapping[str, Any]) -> int:
    """Number of layers in a config.json.

    Raises:
        UserError: When it does not say, or the number is not positive.
    """
    return _count(config, _LAYERS)


def n_experts_of(config: Mapping[str, Any]) -> int:
    """Number of experts of a layer in a config.json.

    Raises:
        UserError: When it does not say, or the number is not positive.
    """
    return _count(config, _EXPERTS_OF_LAYER)


def _count(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    found = next((config[key] for key in keys if key in config), None)
    if not isinstance(found, int) or found < 1:
        raise UserError(
            f"config.json must have {' or '.join(keys)}, a number above 0, got {found}"
        )
    return found
