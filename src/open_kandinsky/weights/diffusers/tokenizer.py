"""CLIP's tokenizer and its preparation of pictures, as files that transformers reads."""

import json
from pathlib import Path
from typing import Any

from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import SimpleTokenizer

from open_kandinsky.core import files

START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path, length: int) -> None:
    """Padding is the end's token, as in OpenAI's: ours is 0, which only a reader of states behind the end can tell."""
    own = SimpleTokenizer(context_length=length)
    renamed = {"<start_of_text>": START, "<end_of_text>": END}
    vocabulary = {renamed.get(word, word): number for word, number in own.encoder.items()}
    merges = sorted(own.bpe_ranks, key=lambda pair: own.bpe_ranks[pair])
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    facts = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **special}
    files.write(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    files.write(folder / "merges.txt", "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    write_json(folder / "tokenizer_config.json", facts)
    write_json(folder / "special_tokens_map.json", special)


def write_image_processor(folder: Path, side: int) -> None:
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": side},
            "resample": 3,  # bicubic
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(OPENAI_DATASET_MEAN),
            "image_std": list(OPENAI_DATASET_STD),
            "do_convert_rgb": True,
        },
    )


def write_json(path: Path, value: Any) -> None:
    files.write(path, json.dumps(value, indent=2) + "\n")
