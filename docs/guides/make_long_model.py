"""Write a model that reads any length and a long story, for the guide to a model's attention at 65,536 tokens.

    python docs/guides/make_long_model.py FOLDER [--tokens 65536]

The model is a Llama of two layers with random weights, but for one head: head 0 of layer 0 looks for earlier places
where the same word stands, so that there is something to see. The story is made of random sentences; one sentence
stands in it twice, near the beginning and near the end.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

NEEDLE = "He left the roses by the bank and never told anybody why ."
WHO = ["the miller", "a heron", "my sister", "the old clock", "nobody", "a letter", "the north wind", "his dog"]
DID = ["waited for", "followed", "forgot", "carried", "painted", "sold", "dreamed of", "counted", "answered"]
WHAT = ["a lantern", "the orchard", "seven apples", "the harbour", "an empty chair", "the snow", "a blue door"]
WHEN = ["at noon", "before winter", "without a word", "in the dark", "every year", "on a Sunday", "too late"]
WIDTH, HEADS = 256, 4
SHARPNESS = 120.0  # of the head that looks for the same word


def story(tokens: int) -> str:
    """So many words and full stops, the needle at one sixteenth and at fifteen sixteenths."""
    rng = random.Random(0)
    words: list[str] = []
    places = [tokens // 16, tokens * 15 // 16]
    while len(words) < tokens:
        sentence = " ".join([rng.choice(part) for part in (WHO, DID, WHAT, WHEN)]) + " ."
        if places and len(words) >= places[0]:
            places.pop(0)
            sentence = NEEDLE
        words += sentence.split()
    return " ".join(words[:tokens])


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word."""
    words = sorted({word for part in (*WHO, *DID, *WHAT, *WHEN, NEEDLE) for word in part.split()})
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *words])}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")


def model(vocabulary: int) -> LlamaModel:
    """The Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1 << 17,
        rope_parameters={"rope_type": "default", "rope_theta": 1e13},
    )
    made = LlamaModel(config).eval()
    attention = made.layers[0].self_attn
    width = WIDTH // HEADS
    # Query and key of head 0 are the same part of the embedding, but for what rotates fast with the position.
    slow = torch.arange(width) % (width // 2) >= width // 4
    same = torch.eye(width, WIDTH) * slow[:, None]
    with torch.no_grad():
        attention.q_proj.weight[:width] = same * SHARPNESS / width**0.5
        attention.k_proj.weight[:width] = same
    return made


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=65_536)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    words = tokenizer()
    words.save_pretrained(chosen.folder / "model")
    model(len(words)).save_pretrained(chosen.folder / "model")
    (chosen.folder / "story.txt").write_text(story(chosen.tokens), encoding="utf-8")
    print(f"wrote {chosen.folder}/model and {chosen.folder}/story.txt, {chosen.tokens:,} tokens")


if __name__ == "__main__":
    main()
