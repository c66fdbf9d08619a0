"""One small batch and what is measured on it, the same under Unsloth and under transformers and TRL as they come."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

BETAS = (0.0, 0.04)
GROUP = 4
# (width, height) in pixels of the images of each prompt: one image, two of different sizes, one.
QUESTIONS = {
    "what is red?": [(84, 56)],
    "where is the blue box in these two pictures?": [(112, 84), (56, 140)],
    "count": [(84, 84)],
}
LENGTHS = [6, 12, 1, 4, 1, 9, 12, 3, 5, 5, 2, 7]  # tokens of each completion
REWARDS = [0.0, 1.0, 3.0, 2.0, 1.0, 1.0, 0.0, 4.0, 2.0, 2.0, 2.0, 2.0]  # the last group teaches nothing
VISION = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")


def rows() -> list[dict[str, Any]]:
    """A prompt a row, without repetition."""
    random = np.random.default_rng(0)
    return [
        {
            "prompt": [{"role": "user", "content": question}],
            "images": [
                Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)) for width, height in sizes
            ],
        }
        for question, sizes in QUESTIONS.items()
    ]


def repeated_rows() -> list[dict[str, Any]]:
    """As TRL's sampler hands them over: each prompt in as many consecutive rows as it gets completions."""
    return [row for row in rows() for _ in range(GROUP)]


def scripted(base: type, completions: Sequence[Sequence[int]]) -> type:
    """The trainer with these completions in the place of a rollout, so that every trainer scores the same ones."""

    class Scripted(base):
        def _generate_single_turn(self, *_: Any, **__: Any) -> tuple[Any, None]:
            return completions, None

    return Scripted


def completions_for(processor: Any) -> list[list[int]]:
    """Random text tokens; every third completion ends with the end token."""
    random, tokenizer = np.random.default_rng(1), processor.tokenizer
    words = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids) - set(suppressed(processor)))
    drawn = [random.choice(words, length).tolist() for length in LENGTHS]
    return [[*ids[:-1], tokenizer.eos_token_id] if row % 3 == 0 else ids for row, ids in enumerate(drawn)]


def suppressed(processor: Any) -> list[int]:
    return processor.tokenizer.convert_tokens_to_ids(list(VISION))


def build_trainer(
    config_type: type, trainer_type: type, model: Any, processor: Any, folder: Any, beta: float, **options: Any
) -> Any:
    """A trainer of either library. Every value that decides a result is passed: their defaults differ."""
    config = config_type(
        output_dir=str(folder),
        per_device_train_batch_size=GROUP,
        gradient_accumulation_steps=len(QUESTIONS),
        steps_per_generation=len(QUESTIONS),
        num_generations=GROUP,
        max_completion_length=max(LENGTHS),
        max_steps=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        beta=beta,
        loss_type="dapo",
        scale_rewards="group",
        epsilon=0.2,
        epsilon_high=0.28,
        temperature=0.9,
        top_k=0,
        top_p=1.0,
        use_bias_correction_kl=False,
        mask_truncated_completions=False,
        generation_kwargs={"suppress_tokens": suppressed(processor)},
        gradient_checkpointing=model.is_gradient_checkpointing,
        bf16=False,
        fp16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        seed=0,
    )
    return trainer_type(
        model=model,
        args=config,
        reward_funcs=[reward],
        train_dataset=_dataset(),
        processing_class=processor,
        **options,
    )


def reward(completions: Sequence[Any], **_: Any) -> list[float]:
    return REWARDS[: len(completions)]


def _dataset() -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows())


def measure(trainer: Any) -> dict[str, Any]:
    """What the trainer makes of the batch.

    Returns:
        batch: the trainer's own inputs of a loss.
        logps: (N,) log-probabilities of all completion tokens, row by row.
        loss: its value.
        gradients: that of each trained parameter.
    """
    model = trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    batch = trainer._generate_and_score_completions(repeated_rows())
    logps = score(trainer, batch)
    model.zero_grad(set_to_none=True)
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    return {"batch": batch, "logps": logps, "loss": float(loss.detach()), "gradients": gradients(model)}


@torch.no_grad()
def score(trainer: Any, batch: dict[str, Any]) -> Tensor:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    logps = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        ids,
        mask,
        batch["completion_ids"].shape[1],
        batch_size=len(ids),
        **{name: batch[name] for name in names if name in batch},
    )[0]
    return logps[batch["completion_mask"].bool()]


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained(model: Any) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def functions_run(action: Callable[[], Any]) -> set[tuple[str, str]]:
    """(file name, qualified name) of every Python function that ran during an action."""
    seen = set()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            seen.add((frame.f_code.co_filename.rsplit("/", 1)[-1], frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return seen
