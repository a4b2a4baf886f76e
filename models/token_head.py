"""A linear token classifier for decoders without such a class in transformers."""

from typing import Any

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput


class TokenClassifier(nn.Module):
    """A backbone and a linear layer on its last hidden states, without dropout.

    It has the attributes of a model with a task head that the architecture table reads:
    `config`, `base_model` and `base_model_prefix`.
    """

    base_model_prefix = "backbone"

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        config: Any = backbone.config
        # the last hidden states of OPT-350m are narrower than its residual stream
        width = getattr(config, "word_embed_proj_dim", None) or config.hidden_size
        self.classifier = nn.Linear(width, config.num_labels)
        self.classifier.to(device=backbone.device, dtype=backbone.dtype)

    @property
    def config(self) -> Any:
        """The backbone's configuration; its `id2label` names the classes."""
        return self.backbone.config

    @property
    def base_model(self) -> PreTrainedModel:
        """The model below the head."""
        return self.backbone

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """A small input of the forward pass, for `check_sites`."""
        return self.backbone.dummy_inputs

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Shaped[Tensor, "batch seq"] | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Class logits of every token; further arguments go to the backbone."""
        outputs = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            **kwargs,
        )
        logits: Float[Tensor, "batch seq classes"] = self.classifier(
            outputs.last_hidden_state
        )
        return TokenClassifierOutput(logits=logits, hidden_states=outputs.hidden_states)
