"""What the tests of shared prompts have in common: models, prompts with completions, and TRL's own numbers for them."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from benchmarks.models import save_random
from grit_lite import families
from grit_lite.packing import Group
from grit_lite.vlm import Prompt, VisionLanguageModel

FAMILIES = tuple(families.FAMILIES)
LANGUAGE = ("language", "attention", "mlp")
VISION = ("vision", "attention")
TEMPERATURE = 0.9
# What float32 leaves of equality: log-probabilities and entropies absolute, gradients as relative L2.
LOGP, ENTROPY, GRADIENT = 5e-6, 1e-5, 1e-5


def model_folder(tmp_path_factory: Any, family: str) -> Path:
    """A random miniature of the family, saved once for the whole run of the tests."""
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent  # of all workers
    folder = common / f"miniature-{family}"
    with FileLock(common / f"miniature-{family}.lock"):
        return folder if folder.exists() else save_random(folder, family, "miniature")


@functools.cache
def load_processor(folder: Path) -> Any:
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    return processor


def load_model(folder: Path, lora_parts: Sequence[str] = LANGUAGE) -> PeftModel:
    """The model with an adapter as if trained; always the same weights, and nothing of ours in it."""
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
    # With half the spread of the logits, float32's rounding of them is well below the tolerances.
    model.get_output_embeddings().weight.data.mul_(0.5)
    targets = families.FAMILIES[model.config.model_type].lora_targets(lora_parts)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return adapted.eval()  # pyright: ignore[reportReturnType]


def lora(model: Any) -> dict[str, Tensor]:
    """The trained parameters, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True)
class Ask:
    """One prompt: a question about random pictures of these (width, height), the first of them drawn from this seed."""

    question: str
    sizes: tuple[tuple[int, int], ...] = ()
    seed: int = 0

    def row(self) -> dict[str, Any]:
        """A row of a TRL dataset."""
        return {"prompt": [{"role": "user", "content": self.question}], "images": self.images()}

    def conversation(self) -> list[dict[str, Any]]:
        """What a processor's chat template reads."""
        parts = [{"type": "image"}] * len(self.sizes) + [{"type": "text", "text": self.question}]
        return [{"role": "user", "content": parts}]

    def images(self) -> list[Image.Image]:
        return [picture(self.seed + place, *size) for place, size in enumerate(self.sizes)]


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


ONE = Ask("How many?", ((112, 112),))
TWO = Ask("What is the color of the one on the left?", ((56, 112), (168, 84)), seed=10)
WIDE = Ask("Is it so?", ((168, 56),), seed=20)
TEXT = Ask("Yes or no, and why?")


@dataclass(frozen=True)
class Case:
    """Prompts, and the lengths of the completions of each, in tokens."""

    prompts: tuple[Ask, ...]
    lengths: tuple[tuple[int, ...], ...]

    def completions(self) -> list[list[Tensor]]:
        """Random words for each prompt: (C,) token ids each."""
        generator = torch.Generator().manual_seed(len(self.prompts))
        return [[torch.randint(100, 600, (count,), generator=generator) for count in own] for own in self.lengths]

    def rows(self) -> list[dict[str, Any]]:
        """TRL's rows: each prompt as often as it has completions."""
        return [ask.row() for ask, own in zip(self.prompts, self.lengths, strict=True) for _ in own]

    def weights(self) -> Tensor:
        """(N,) random weights of all completion tokens, for a sum whose gradient they single out."""
        return torch.randn(sum(map(sum, self.lengths)), generator=torch.Generator().manual_seed(7))


CASES = {
    "uniform": Case((ONE,), ((5, 5, 5, 5),)),
    "ragged": Case((ONE,), ((6, 20, 1, 4),)),
    "two images": Case((TWO,), ((3, 1, 8),)),
    "two prompts": Case((ONE, TWO), ((6, 20, 1, 4), (1, 24, 20, 8))),
    "three prompts": Case((WIDE, TWO, ONE), ((7,), (2, 9), (1, 1, 3, 12))),
    "text beside images": Case((WIDE, TEXT, ONE), ((4, 11), (1, 17, 5), (2, 8))),
    "text alone": Case((TEXT,), ((4, 11, 1),)),
}


def grpo_trainer(
    model: Any,
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    base: type = GRPOTrainer,
    reward: Any = None,
    **options: Any,
) -> Any:
    """A trainer on float32 and a CPU.

    Args:
        folder: of the model; its processor is loaded anew.
        rows: the prompts, in the order of training.
        base: TRL's trainer, or ours that was made from it.
        reward: TRL's reward function; the same for all by default.
        options: of GRPOConfig, `schedule` for ours, and `evaluated` for the prompts of an evaluation.
    """
    ours = {"schedule": options.pop("schedule")} if "schedule" in options else {}
    evaluated = options.pop("evaluated", None)
    settings = {
        "output_dir": str(folder / "trainer"),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "shuffle_dataset": False,
        "num_generations": 4,
        "num_generations_eval": 1,
        "per_device_train_batch_size": 8,
        "temperature": TEMPERATURE,
        "gradient_checkpointing": False,
        **options,
    }
    return base(
        model=model,
        args=GRPOConfig(**settings),
        reward_funcs=[reward or (lambda completion_ids, **_: [0.0] * len(completion_ids))],
        train_dataset=_dataset(rows),
        eval_dataset=_dataset(evaluated) if evaluated else None,
        processing_class=load_processor(folder),
        **ours,
    )


def _dataset(rows: list[dict[str, Any]]) -> Dataset:
    """Rows that hold their pictures as they are."""

    def columns(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        return {name: [rows[place][name] for place in batch["place"]] for name in rows[0]}

    return Dataset.from_dict({"place": list(range(len(rows)))}).with_transform(columns)


class Stock:
    """TRL's trainer on a model of its own: a padded row for each completion, with the prompt and its images in it."""

    def __init__(self, folder: Path, lora_parts: Sequence[str] = LANGUAGE) -> None:
        self.model = load_model(folder, lora_parts)
        self.trainer = grpo_trainer(self.model, folder, [ONE.row(), TWO.row()])
        self.model.eval()

    def batch(self, case: Case) -> dict[str, Any]:
        """TRL's own padded batch of the case's completions."""
        completions = [ids.tolist() for own in case.completions() for ids in own]
        self.trainer.rollout_func = lambda prompts, trainer: {
            "prompt_ids": trainer._tokenize_prompts(prompts)[0],
            "completion_ids": completions,
            "logprobs": None,
        }
        return self.trainer._generate_and_score_completions(case.rows())

    def score(self, case: Case) -> tuple[Tensor, Tensor]:
        """(N,) log-probabilities and (N,) entropies of all completion tokens, as TRL computes them."""
        batch = self.batch(case)
        both = ("prompt", "completion")
        fields = ("pixel_values", "image_grid_thw", "mm_token_type_ids", "num_images", "num_tiles")
        logps, entropies, _ = self.trainer._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([batch[f"{part}_ids"] for part in both], dim=1),
            torch.cat([batch[f"{part}_mask"] for part in both], dim=1),
            batch["completion_ids"].shape[1],
            compute_entropy=True,
            **{name: batch[name] for name in fields if name in batch},
        )
        mask = batch["completion_mask"].bool()
        return logps[mask], entropies[mask]


class Pair:
    """The stock computation and ours, on two models with the same weights.

    Args:
        checkpointing: of our model: whether its gradient checkpointing is of the reentrant kind; None for none.
    """

    def __init__(
        self, folder: Path, lora_parts: Sequence[str] = LANGUAGE, *, checkpointing: bool | None = None
    ) -> None:
        self.stock = Stock(folder, lora_parts)
        self.processor = load_processor(folder)
        self.model = load_model(folder, lora_parts)
        self.vlm = VisionLanguageModel(self.model)
        self._expected: dict[Case, tuple[Tensor, Tensor, Tensor]] = {}
        if checkpointing is not None:
            self.model.enable_input_require_grads()
            self.model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
            self.model.train()

    def batch(self, asks: Sequence[Ask]) -> dict[str, Any]:
        """The processor's batch of the prompts, left-padded."""
        images = [ask.images() for ask in asks]
        texts = [
            self.processor.apply_chat_template(ask.conversation(), add_generation_prompt=True, tokenize=False)
            for ask in asks
        ]
        return self.processor(images=images if any(images) else None, text=texts, padding=True, return_tensors="pt")

    def prompts(self, asks: Sequence[Ask]) -> list[Prompt]:
        batch = self.batch(asks)
        rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        return self.vlm.prompts([ids[mask.bool()].tolist() for ids, mask in rows], [len(a.sizes) for a in asks], batch)

    def groups(self, case: Case) -> list[Group]:
        return list(zip(self.prompts(case.prompts), case.completions(), strict=True))

    def expected(self, case: Case) -> tuple[Tensor, Tensor, Tensor]:
        """TRL's log-probabilities, entropies, and LoRA gradient of the weighted sum of the log-probabilities."""
        if case not in self._expected:
            logps, entropies = self.stock.score(case)
            gradient = lora_gradient(self.stock.model, logps @ case.weights())
            self._expected[case] = logps.detach(), entropies.detach(), gradient
        return self._expected[case]


def lora_gradient(model: Any, scalar: Tensor) -> Tensor:
    """The gradient of all trained parameters in one row; where none arrives it is zero."""
    model.zero_grad()
    scalar.backward()
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in lora(model).values()]
    model.zero_grad()
    return torch.cat([gradient.flatten() for gradient in gradients])


def relative(ours: Tensor, stock: Tensor) -> float:
    """The L2 distance from stock, as a share of its own norm."""
    return ((ours - stock).norm() / stock.norm()).item()


def distance(ours: Tensor, stock: Tensor) -> float:
    """The largest difference."""
    return (ours - stock).abs().max().item()
