"""Folders of tiny random models with a small word-piece tokenizer, written by `save_pretrained`."""

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

PIECES = ["he", "left", "the", "rose", "##s", "by", "bank", ".", ",", "she", "now", "and", "river", "it", "a"]
VOCAB = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *PIECES])}
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}


def tokenizer(*, framed, limit=64):
    backend = Tokenizer(models.WordPiece(VOCAB, unk_token="[UNK]"))  # noqa: S106  no password
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if framed:
        ends = [(name, VOCAB[name]) for name in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=limit,
        unk_token="[UNK]",  # noqa: S106  no password
        pad_token="[PAD]",  # noqa: S106  no password
        cls_token="[CLS]" if framed else None,
        sep_token="[SEP]" if framed else None,
    )


def bert(limit=64):
    return BertModel(BertConfig(vocab_size=len(VOCAB), max_position_embeddings=limit, **SIZES))


def gpt2():
    return GPT2Model(GPT2Config(vocab_size=len(VOCAB), n_embd=16, n_layer=2, n_head=2, n_positions=64))


def llama():
    return LlamaModel(LlamaConfig(vocab_size=len(VOCAB), num_key_value_heads=1, max_position_embeddings=64, **SIZES))


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    return T5Model(T5Config(vocab_size=len(VOCAB), decoder_start_token_id=0, **sizes))


KINDS = {"bert": bert, "gpt2": gpt2, "llama": llama, "t5": t5}


def save(folder, kind="bert", **options):
    """Write a model of that kind with its tokenizer; its weights are large enough for sharp patterns."""
    torch.manual_seed(7)
    model = KINDS[kind](**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer(framed=kind == "bert", **options).save_pretrained(folder)
    return folder
