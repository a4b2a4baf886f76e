"""Which parameters relearning trains, by the flag `trained`."""

from torch import nn

from circuitcut.relearning.lora_rank import lora_rank
from circuitcut.relearning.trained_names import PARTS, matcher
from circuitcut.storage.errors import UserError


def trained_parameters(model: nn.Module, trained: str) -> dict[str, nn.Parameter]:
    """The parameters that relearning trains, by name.

    Args:
        model: The model to fine-tune.
        trained: `head`, a key of `PARTS`, `layers:2` or `layers:2-4` (blocks counted
            from 0, both ends included), or a regular expression that is searched in
            names. `head` is what lies outside `base_model_prefix`, or outside `blocks`
            where the model has no such attribute. Integer parameters are left out.
            `lora` and `lora:RANK` are the adapters that `lora.add_adapters_` added.

    Raises:
        UserError: When nothing matches, the expression is not valid, or the head cannot
            be distinguished from the rest.
    """
    trainable = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() or parameter.is_complex()
    }
    if not trainable:
        raise UserError(f"{type(model).__name__} has no parameter that can be trained")
    body = getattr(model, "base_model_prefix", "blocks")
    chosen = matcher(rf"^(?!{body}\.)" if trained == "head" else trained)
    parameters = {
        name: parameter for name, parameter in trainable.items() if chosen(name)
    }
    if trained == "head" and len(parameters) == len(trainable):
        raise UserError(
            f"argument trained must not be head for {type(model).__name__}, which has "
            f"no parameter below {body!r}; give a regular expression"
        )
    if not parameters and lora_rank(trained) is not None:
        raise UserError(
            f"argument trained is {trained!r}, and {type(model).__name__} has no "
            "adapters; call relearning.lora.add_adapters_ first"
        )
    if not parameters:
        names = list(trainable)
        raise UserError(
            f"argument trained must match a parameter, {trained!r} matches none of "
            f"{len(names)} ({names[0]} ... {names[-1]}); give head, "
            f"{', '.join(PARTS)}, layers:FIRST-LAST or a regular expression"
        )
    return parameters
