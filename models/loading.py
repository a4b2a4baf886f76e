"""Load and check a model from the hub, a local folder, a GGUF file or a package."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from circuitcut.models.architectures import (
    architecture_named,
    architecture_of,
    check_sites,
    sites_of,
)
from circuitcut.models.loaded import (
    LoadedModel,
    config_hash_of,
    frozen,
    resolved_head,
    special_ids_of,
)
from circuitcut.models.mlp import MLP_TYPE, Mlp
from circuitcut.models.names import MODULE_KINDS
from circuitcut.models.quiet import quiet
from circuitcut.models.saving import TOKEN_HEAD_FILE, save_model
from circuitcut.models.source import (
    WEIGHTS_FILE,
    Source,
    check_files,
    check_head,
    errors_of_config,
    find_source,
    read_config,
)
from circuitcut.models.token_head import TokenClassifier
from circuitcut.storage.atomic import read_tensors
from circuitcut.storage.errors import UserError, one_line

__all__ = ["LoadedModel", "frozen", "load_model", "load_tokenizer", "save_model"]

_SPARE = 10_000_000
"""Parameters that a configuration may describe beyond twice those in the files."""
_HEAD_STD = 0.02  # initial standard deviation of a new head, as in BERT and GPT-2


def load_model(
    name: str,
    *,
    head: str,
    labels: Sequence[str] | None = None,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> LoadedModel:
    """A model of the architecture table in evaluation mode, with all sites checked.

    Only a hub name needs the network. Configuration, head and tokenizer are checked
    before any weight is read. Weights are read from safetensors only.

    Args:
        name: Hub name (`owner/name`), local folder, GGUF file, `minilm` or `smollm2`.
        head: `causal_lm`, `masked_lm`, `language_model` (the one of these two that the
            architecture has), `token_classification` or `image_classification`.
        labels: Class names in the order of the logits. If the checkpoint's head has the
            same names in another order, its rows are reordered; if it has other names,
            the model gets a new head. None takes the checkpoint's names.
        revision: Branch, tag or commit on the hub.
        dtype: Data type of the weights.
        device: Device of the weights.
        seed: Seed of the weights of a new head.

    Raises:
        UserError: When the model is not found, is not supported or cannot have this
            head, or when a file is missing or corrupt; the message names the file.
    """
    source = find_source(name, revision)
    source, stored = read_config(source)
    is_decoder = architecture_named(stored["model_type"]).is_decoder
    head = resolved_head(head, is_decoder=is_decoder)
    check_head(source, stored, head)
    is_classifier = head.endswith("classification")
    names = _class_names(source, stored, labels) if is_classifier else None
    shapes = check_files(source)
    if stored["model_type"] == MLP_TYPE:
        tokenizer = None
        assert names is not None
        model, head_is_new = _load_mlp(source, stored, names, seed)
        model.to(dtype)
    else:
        old = _stored_names(source, stored) if names is not None else []
        model, tokenizer, head_is_new = _load_text_model(
            source, head, names, old, dtype, seed, shapes
        )
    model.to(device).eval()
    architecture = architecture_of(model)
    kinds = [kind for kind in MODULE_KINDS if kind != "heads" or architecture.heads]
    with errors_of_config(source):
        check_sites(model, sites_of(model, kinds))
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        revision=source.revision,
        config_hash=config_hash_of(model.config),
        head_is_new=head_is_new,
        is_decoder=architecture.is_decoder,
        special_ids=special_ids_of(tokenizer, head, is_decoder=architecture.is_decoder),
    )


def _stored_names(source: Source, stored: dict[str, Any]) -> list[str]:
    """Class names in a configuration; empty if it has none."""
    if stored["model_type"] == MLP_TYPE:
        return [str(label) for label in stored.get("labels") or []]
    names = stored.get("id2label") or {}
    try:
        return [str(names[index]) for index in sorted(names, key=int)]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.json of {source.name!r} has an id2label that does not map class "
            f"numbers to names ({one_line(error)}); correct it"
        ) from error


def _class_names(
    source: Source, stored: dict[str, Any], labels: Sequence[str] | None
) -> list[str]:
    names = _stored_names(source, stored) if labels is None else list(labels)
    if not names:
        raise UserError(
            f"argument labels must name the classes: model {source.name!r} has none"
        )
    if len(set(names)) != len(names):
        raise UserError(f"argument labels must be distinct, got {names}")
    return names


def _load_mlp(
    source: Source, stored: dict[str, Any], names: list[str], seed: int
) -> tuple[nn.Module, bool]:
    file = Path(source.path) / WEIGHTS_FILE
    old = _stored_names(source, stored)
    tensors = read_tensors(file)
    try:
        sizes = stored["n_in"], stored["intermediate_size"]
        with torch.device("meta"):  # of any size that config.json may say
            saved = Mlp(*sizes, len(old), labels=old)
        saved.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{file} does not hold the weights its config.json describes: "
            f"{one_line(error)}"
        ) from error
    saved.float()
    model = Mlp(*sizes, len(names), labels=names)
    model.blocks.load_state_dict(saved.blocks.state_dict())
    is_new = sorted(old) != sorted(names)
    if is_new:
        _renew_(model.output, seed)
    else:
        model.output.load_state_dict(saved.output.state_dict())
        _reorder_(model.output, old, names)
    return model, is_new


def _load_text_model(
    source: Source,
    head: str,
    names: Sequence[str] | None,
    old: Sequence[str],
    dtype: torch.dtype,
    seed: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[nn.Module, Any, bool]:
    """A transformers model, its tokenizer, and whether its head is new.

    Args:
        head: `masked_lm`, `causal_lm` or `token_classification`.
        names: Classes of the head; None loads a language model head.
        old: Classes of the saved head.
        shapes: Of the tensors in the files, where they are known.

    Raises:
        UserError: When the files have no head of a masked language model.
    """
    bars = not source.is_local and sys.stderr.isatty()
    with quiet(bars=bars), torch.random.fork_rng(devices=[]):
        config = _config(source, names)
        tokenizer = load_tokenizer(source, config.vocab_size)
        _check_size(source, config, shapes)
        torch.manual_seed(seed)
        if names is not None:
            model, is_new = _load_classifier(source, config, old, dtype, seed)
            return model, tokenizer, is_new
        is_masked = head == "masked_lm"
        auto = AutoModelForMaskedLM if is_masked else AutoModelForCausalLM
        model, missing = _from_pretrained(auto, source, config, dtype)
        if is_masked and missing:
            raise UserError(
                f"model {source.name!r} has no head of a masked language model: its "
                f"files lack {missing[0]}; use a checkpoint that was saved with one"
            )
        return model, tokenizer, bool(missing)


def _load_classifier(
    source: Source, config: Any, old: Sequence[str], dtype: torch.dtype, seed: int
) -> tuple[nn.Module, bool]:
    """A token classifier with the classes of `config`, and whether its head is new.

    The saved head has the classes `old`; it is used if they are the same classes.
    """
    names = [config.id2label[index] for index in range(config.num_labels)]
    same = sorted(old) == sorted(names)
    if type(config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        auto = AutoModelForTokenClassification
        model, missing = _from_pretrained(auto, source, config, dtype)
        classifier = _linear_child(model)
        is_new = bool(missing) or not same
    else:
        backbone, _ = _from_pretrained(AutoModel, source, config, dtype)
        model = TokenClassifier(backbone)
        classifier = model.classifier
        is_new = not (same and _read_head_(classifier, source))
    if is_new:
        _renew_(classifier, seed)
    else:
        _reorder_(classifier, old, names)
    return model, is_new


def _config(source: Source, names: Sequence[str] | None) -> Any:
    labels: dict[str, Any] = {}
    if names is not None:
        labels["id2label"] = dict(enumerate(names))
        labels["label2id"] = {name: index for index, name in enumerate(names)}
    with errors_of_config(source):
        return AutoConfig.from_pretrained(source.path, **source.arguments, **labels)


def _check_size(
    source: Source, config: Any, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a configuration of a far larger model than the files hold, before it fills
    the memory.
    """
    if not shapes:
        return
    n_stored = sum(map(math.prod, shapes.values()))
    with errors_of_config(source):
        if not 0 < config.num_hidden_layers <= len(shapes):
            raise UserError(
                f"config.json of {source.name!r} says {config.num_hidden_layers} "
                f"layers, but the weights are {len(shapes)} tensors; take both from "
                "the same model"
            )
        with torch.device("meta"):
            declared = AutoModel.from_config(config)
        n_declared = sum(value.numel() for value in declared.parameters())
    if n_declared > 2 * n_stored + _SPARE:
        raise UserError(
            f"config.json of {source.name!r} describes {n_declared:,} parameters, but "
            f"the weights are {n_stored:,} numbers; take both from the same model"
        )


def _from_pretrained(
    auto: Any, source: Source, config: Any, dtype: torch.dtype
) -> tuple[Any, list[str]]:
    """A transformers model, and the parameters of its head that are not in the files.

    Raises:
        UserError: When parameters of the base model are missing in the files, or their
            shapes differ from the configuration.
    """
    try:
        model, info = auto.from_pretrained(
            source.path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **source.arguments,
        )
    except Exception as error:  # as in `errors_of_config`
        raise UserError(
            f"cannot load the weights of {source.name!r}: {one_line(error)}"
        ) from error
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    absent = sorted(key for key in info["missing_keys"] if key.startswith(prefix))
    if absent:
        raise UserError(
            f"the weights of {source.name!r} lack {len(absent)} parameters of its "
            f"config.json, for instance {absent[0]}; copy all of its files again"
        )
    wrong = sorted(
        entry for entry in info["mismatched_keys"] if entry[0].startswith(prefix)
    )
    if wrong:
        key, shape, declared = wrong[0]
        raise UserError(
            f"the weights of {source.name!r} have {key} with shape {tuple(shape)}, but "
            f"its config.json says {tuple(declared)}; take both from the same model"
        )
    renewed = {entry[0] for entry in info["mismatched_keys"]}
    return model, sorted(renewed | set(info["missing_keys"]))


def load_tokenizer(source: Source, vocab_size: int) -> Any:
    """The fast tokenizer of a model, with padding on the right.

    A tokenizer without a padding token (GPT-2's) pads with its end-of-text token. This
    is safe: `attention_mask` hides padding from the model, and the batches mark
    positions with masks and never compare ids with the padding id.

    Raises:
        UserError: When the files have none, it has no vocabulary or padding token, or
            ids that the model has no embeddings for.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, **source.arguments)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(
            f"model {source.name!r} has no usable tokenizer ({one_line(error)}); "
            "put tokenizer.json and tokenizer_config.json beside its config.json"
        ) from error
    if not tokenizer.is_fast or len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UserError(
            f"model {source.name!r} has no tokenizer with a vocabulary that the "
            "tokenizers library reads; put tokenizer.json beside its config.json"
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise UserError(
            f"the tokenizer of {source.name!r} has ids up to {largest}, but its model "
            f"has only {vocab_size} embeddings; take both from the same model"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise UserError(
            f"the tokenizer of {source.name!r} has no padding, end or unknown token; "
            "add pad_token to its tokenizer_config.json"
        )
    tokenizer.padding_side = "right"
    return tokenizer


def _linear_child(model: nn.Module) -> nn.Linear:
    """The linear layer of a transformers token classifier, next to its base model."""
    return next(child for child in model.children() if isinstance(child, nn.Linear))


def _read_head_(classifier: nn.Linear, source: Source) -> bool:
    """Load a `TokenClassifier` head from a saved folder; False if there is no head."""
    file = Path(source.path) / TOKEN_HEAD_FILE
    if not (source.is_local and file.exists()):
        return False
    try:
        classifier.load_state_dict(read_tensors(file))
    except RuntimeError as error:
        raise UserError(
            f"{file} does not fit config.json: {one_line(error)}; take both from "
            "the same model"
        ) from error
    return True


@torch.no_grad()
def _renew_(layer: nn.Linear, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=rng) * _HEAD_STD)
    if layer.bias is not None:
        layer.bias.zero_()


@torch.no_grad()
def _reorder_(layer: nn.Linear, old: Sequence[str], names: Sequence[str]) -> None:
    """Permute the rows of a head from the class order `old` to `names`."""
    order = [old.index(name) for name in names]
    for parameter in layer.parameters():
        rows: Tensor = parameter[order]
        parameter.copy_(rows)
