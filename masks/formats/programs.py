"""The programs whose masks on edges can be read, and their residual graphs.

In all of them the logits read from one node before the last norm, and an MLP's bias is
masked with its MLP. They differ in the input nodes, in attention's output bias, in the
value biases, and in merged or separate edges for a head's q, k and v. All but
Edge-Pruning load their weights with TransformerLens, whose `fold_value_biases` moves
b_V W_O into the output bias; where its `fold_ln` is on, as by default, b_V has the
bias of the norm before in it (mechanistic-unlearning turns it off, and so do EAP-IG's
own scripts, not MIB). Sources, read in 2026:

* `mib`: EAP-IG and the MIB benchmark, github.com/hannamw/EAP-IG, `src/eap/graph.py`
* `auto_circuit`: github.com/UFO-101/auto-circuit, `model_utils/transformer_lens_utils`
* `edge_pruning`: github.com/princeton-nlp/Edge-Pruning, `modeling_fpt2.py`
* `circuit_breaking`: github.com/xanderdavies/circuit-breaking, `toxicity/transformer`,
  and github.com/magikarp01/mechanistic-unlearning, `edge_masked_transformer.py`
* `disco_gp`: github.com/frankniujc/disco_gp, `discogp_lm.py`
"""

from dataclasses import dataclass
from typing import Literal

from circuitcut.masks.gate_settings import AblationKind
from circuitcut.models.residual.graph import AttentionBias, Position, ValueBias


@dataclass(frozen=True)
class Convention:
    """The residual graph of one program."""

    position: Position
    attention_bias: AttentionBias
    merged: bool
    """True: merged edges for a head's q, k and v; False: separate edges."""
    ablation: AblationKind
    """The program's default ablation value."""
    value_bias: ValueBias
    """Where the constants that value biases write are, as the weights are loaded."""
    prunes: bool = False
    """Its evaluation first ablates edges on no path from the input to the logits."""


CONVENTIONS: dict[str, Convention] = {
    "mib": Convention(
        "always", "always", False, "counterfactual", "output_with_norm", prunes=True
    ),
    "auto_circuit": Convention(
        "merged", "always", False, "counterfactual", "output_with_norm"
    ),
    "edge_pruning": Convention("own", "heads", False, "counterfactual", "heads"),
    "circuit_breaking": Convention("merged", "heads", True, "zero", "output"),
    "disco_gp": Convention("merged", "heads", False, "zero", "output_with_norm"),
}
"""The graph of each format, by name of the format."""
FORMATS = (*CONVENTIONS, "edges")
"""Formats that hold a complete mask and can therefore be read."""
Shared = Literal["refuse", "keep", "ablate"]
"""What an edge becomes that stands for several which differ."""
Embeddings = Literal["auto", "nodes", "always"]
