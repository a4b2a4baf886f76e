"""A model without its key-value cache within a `with` block, `generate` included."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from typing import Any

from torch import Tensor, nn

from circuitcut.models.architectures import text_module
from circuitcut.storage.errors import UserError

_CACHE_SETTINGS = (
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "prefill_chunk_size",
)
"""Settings of `generate` that ask for a cache, or need one."""
_ASSISTANTS = ("assistant_model", "prompt_lookup_num_tokens")
"""Settings of assisted generation, which needs a cache."""


@contextmanager
def without_cache(model: nn.Module, cause: str) -> Iterator[None]:
    """Let every forward pass of `model` compute the whole text, and return no cache.

    `generate` runs the whole text for every new token, whatever its arguments and
    settings say about a cache. Afterwards the model is as before.

    Args:
        cause: What allows no cache, the first words of the messages.

    Raises:
        UserError: Inside the context, when a forward pass gets a cache, even an empty
            one, which it would not fill, or an attention mask of another length than
            its inputs; when `generate` gets a cache with tokens in it, `inputs_embeds`
            or an assistant, which all need a cache.
    """
    base = text_module(model)
    with ExitStack() as undo:
        hook = partial(_before_forward, type(base).forward, cause)
        handle = base.register_forward_pre_hook(hook, with_kwargs=True)
        undo.callback(handle.remove)
        generate: Any = getattr(model, "generate", None)
        if generate is not None:
            uncached = {"generate": partial(_generate, model, generate, cause)}
            undo.enter_context(_attributes(model, uncached))
        yield


def _before_forward(
    forward: Callable[..., Any],
    cause: str,
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    names = list(inspect.signature(forward).parameters)[1:]
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    if named.get("past_key_values") is not None:
        raise UserError(
            f"{cause}: argument past_key_values must be None, got a "
            f"{type(named['past_key_values']).__name__}; pass the whole text in every "
            "step, and call generate on the model that has the mask"
        )
    _check_length(cause, named)
    if "use_cache" not in names:
        return args, kwargs
    place = names.index("use_cache")
    if len(args) > place:
        return (*args[:place], False, *args[place + 1 :]), kwargs
    return args, {**kwargs, "use_cache": False}


def _check_length(cause: str, named: Mapping[str, Any]) -> None:
    """A mask longer than the inputs is that of a text of which a part was left out."""
    mask = named.get("attention_mask")
    ids = named.get("input_ids")
    inputs = named.get("inputs_embeds") if ids is None else ids
    if not isinstance(mask, Tensor) or mask.dim() != 2 or inputs is None:
        return
    if mask.shape[1] != inputs.shape[1]:
        raise UserError(
            f"{cause}: argument attention_mask must have as many tokens as the inputs, "
            f"got {mask.shape[1]} and {inputs.shape[1]}; pass the whole text in every "
            "step"
        )


def _generate(
    model: Any,
    generate: Callable[..., Any],
    cause: str,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`generate` with all of its ways to ask for a cache switched off."""
    bound = inspect.signature(generate).bind(*args, **kwargs).arguments
    named: dict[str, Any] = {**bound, **bound.pop("kwargs", {})}
    settings = named.get("generation_config")
    _check_generate(cause, named, settings)
    for name in ("kwargs", "past_key_values", *_CACHE_SETTINGS):
        named.pop(name, None)
    off = {**dict.fromkeys(_CACHE_SETTINGS), "use_cache": False}
    if settings is not None:
        named["generation_config"] = copy(settings)
        vars(named["generation_config"]).update(off)
    with _attributes(model.generation_config, off):
        return generate(**named)


def _check_generate(cause: str, named: Mapping[str, Any], settings: Any) -> None:
    cache = named.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise UserError(
            f"{cause}: argument past_key_values of generate must be None or empty, got "
            f"a cache of {cache.get_seq_length()} tokens; pass the whole text and no "
            "cache"
        )
    if named.get("inputs_embeds") is not None:
        raise UserError(
            f"{cause}: generate continues inputs_embeds by its cache alone; pass "
            "input_ids"
        )
    for name in _ASSISTANTS:
        if (named.get(name) or getattr(settings, name, None)) is not None:
            raise UserError(
                f"{cause}: assisted generation needs one; leave {name} out, the text "
                "is the same"
            )


@contextmanager
def _attributes(owner: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Attributes of one object, set around its class and put back as they were."""
    attributes = vars(owner)
    earlier = {name: attributes[name] for name in values if name in attributes}
    attributes.update(values)
    try:
        yield
    finally:
        for name in values:
            attributes.pop(name, None)
        attributes.update(earlier)
