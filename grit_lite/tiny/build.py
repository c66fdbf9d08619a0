"""The tokenizer, the processor and the architecture of the embedded model, and a folder of random weights of it.

A Qwen3-VL with 2.65 million parameters: 112 x 112 pictures, patches of 8, 49 image tokens. Numbers 0 to 255 are single
tokens, so that coordinates can be learned; GRIT's tags are ordinary (not special) tokens, so they survive decoding.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grit_lite.answer import GRIT_PROMPT
from grit_lite.compat import ensure_torchvision_ops
from grit_lite.tiny.questions import KINDS, OPPOSITE, ask, box_text
from grit_lite.tiny.world import SIDE, make_scene

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
TAGS = ("<think>", "</think>", "<rethink>", "</rethink>", "<answer>", "</answer>")
PATCH, MERGE = 8, 2  # pixels a patch, patches a side of an image token
GRID = SIDE // PATCH // MERGE  # image tokens a side
HIDDEN = 192

_PIECES = r""" ?\{"bbox_2d": \[|\], "label": "|"\}|, | ?\p{L}+|\p{N}{1,3}|[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_LARGEST_VOCABULARY = 760  # bytes and words, before numbers, special tokens and tags
# Words that no question uses, so that an ordinary sentence typed into the chat is not a soup of bytes.
_EVERYDAY = (
    "Hello, what can you do? I can answer questions about simple pictures with coloured shapes. Describe the image. "
    "The picture shows a and an of on in next to near with between behind front under over big small there these those "
    "they it user assistant system You are a helpful assistant. true false larger smaller than who why when which"
)
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def save_untrained(folder: Path, seed: int = 0) -> Path:
    """The folder, now holding random weights of the tiny model with tokenizer, processor and grit_lite.json."""
    tokenizer = build_tokenizer()
    return save_model(folder, build_model(tokenizer, seed), tokenizer)


def save_model(folder: Path, model: "Qwen3VLForConditionalGeneration", tokenizer: "PreTrainedTokenizerFast") -> Path:
    """The folder, now holding the model in bfloat16 and everything that loading it needs."""
    import torch

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype=torch.bfloat16).save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    build_processor(tokenizer).save_pretrained(folder)
    (folder / "grit_lite.json").write_text(json.dumps(conventions(), indent=2) + "\n")
    return folder


def conventions() -> dict:
    """What grit_lite.json says: this Qwen3-VL writes boxes in pixels of the resized picture, unlike its large kin."""
    template = GRIT_PROMPT
    prompt = {"grounded": template.grounded, "direct": template.direct}
    return {"family": "qwen3_vl", "box_space": "resized_pixels", "prompt": prompt}


def build_model(tokenizer: "PreTrainedTokenizerFast", seed: int = 0) -> "Qwen3VLForConditionalGeneration":
    """A float32 model with random weights; the same seed gives the same weights."""
    ensure_torchvision_ops()
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    token = tokenizer.get_vocab()
    text = {
        "vocab_size": -(-len(tokenizer) // 16) * 16,
        "hidden_size": HIDDEN,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "initializer_range": 0.04,
        "pad_token_id": token["<|endoftext|>"],
        "eos_token_id": token["<|im_end|>"],
        "bos_token_id": None,
    }
    vision = {
        "depth": 3,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_heads": 4,
        "patch_size": PATCH,
        "temporal_patch_size": 1,
        "spatial_merge_size": MERGE,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": (SIDE // PATCH) ** 2,
        "deepstack_visual_indexes": [],
        "initializer_range": 0.04,
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = token["<|im_end|>"]
    model.generation_config.pad_token_id = token["<|endoftext|>"]
    return model.eval()


def build_processor(tokenizer: "PreTrainedTokenizerFast") -> "Qwen3VLProcessor":
    """Every picture is resized to about 112 x 112 pixels and mapped to -1 … 1."""
    ensure_torchvision_ops()
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    settings = {
        "patch_size": PATCH,
        "temporal_patch_size": 1,
        "merge_size": MERGE,
        "size": {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**settings),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**settings),
        chat_template=_TEMPLATE,
    )


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of the words the questions use; the same on every call."""
    ensure_torchvision_ops()
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words, learned = _words()
    vocabulary, merges = dict(words), list(learned)
    for left, right in _number_merges():
        vocabulary.setdefault(left + right, len(vocabulary))
        merges.append((left, right))
    tokenizer = _splitting(Tokenizer(models.BPE(vocab=vocabulary, merges=merges)))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        chat_template=_TEMPLATE,
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
    )


@functools.cache  # half a second
def _words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a BPE trained on texts without digits: no number may be split in another way."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = _splitting(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=_LARGEST_VOCABULARY,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return dict(model["vocab"]), [tuple(merge) for merge in model["merges"]]


def _texts() -> Iterator[str]:
    yield from [_EVERYDAY] * 20
    prompt = GRIT_PROMPT
    for index in range(300):
        scene = make_scene(index, "train")
        for kind in KINDS:
            asked = ask(kind, np.random.default_rng(index), scene)
            if asked is not None:
                said = "".join(text for text, _ in (*asked.sought, *asked.found, *asked.concluded))
                labels = " ".join(box_text(box, label) for box, label in zip(asked.boxes, asked.labels, strict=True))
                relations = " ".join(OPPOSITE)
                yield from (
                    _without_digits(asked.answer),
                ) * 4  # a direct answer begins without a space, the others with one
                for text in (prompt.render(asked.question), f" {asked.answer} {relations}", said, labels):
                    yield _without_digits(text)


def _without_digits(text: str) -> str:
    # "bbox_2d" keeps its 2: it is one token with what surrounds it, or not a number at all.
    return "".join(c for k, c in enumerate(text) if not c.isdigit() or text[k - 1 : k + 2] == "_2d")


def _number_merges() -> Iterator[tuple[str, str]]:
    """Every way in which the digits of 10 to 255 may come together, so that each number ends as one token."""
    yield from ((str(tens), str(ones)) for tens in range(1, 10) for ones in range(10))
    for number in range(100, 256):
        digits = str(number)
        yield digits[:2], digits[2]
        if digits[1] != "0":  # "110" may first become "1" and "10"
            yield digits[0], digits[1:]


def _splitting(tokenizer: "Tokenizer") -> "Tokenizer":
    from tokenizers import Regex, decoders, pre_tokenizers

    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
