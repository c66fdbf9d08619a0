"""Shared prompts in TRL's GRPO trainer: the pass of `packing` and the rollout of `rollout`, in a handful of overrides.

TRL carries everything row by row, so that a prompt and its images exist G times. Here each distinct prompt exists once,
in `prompts`, and what stands in TRL's batch in place of a row's images is the number of its prompt. The loss, the
rewards, the advantages and the optimizer stay TRL's.
"""

import inspect
import itertools
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing

from grit_lite.packing import PACKED, Schedule
from grit_lite.rollout import Sampling, sample
from grit_lite.vlm import Prompt, VisionLanguageModel


def share_prompts(base: type) -> type:
    """The subclass of a GRPOTrainer, TRL's own or one that was derived from its source, that runs every prompt once.

    Its constructor takes, beside the base's arguments, the `schedule` of its passes.
    """

    class SharedPromptTrainer(base):
        def __init__(self, *args: Any, schedule: Schedule = PACKED, **options: Any) -> None:
            super().__init__(*args, **options)
            if schedule.staged and self._entropy_bonus_enabled:
                raise ValueError("entropies carry no gradient in stages: use the packed schedule, or no entropy bonus")
            self.vlm = VisionLanguageModel(self.model)
            self.schedule = schedule
            self.prompts: list[Prompt] = []
            self.skipped_rows: Tensor | None = None

        def _prompt_numbers(self, rows: int) -> list[int]:
            """TRL repeats each prompt in consecutive rows, over the processes one after the other."""
            first = self.accelerator.process_index * rows
            return [(first + row) // self.num_generations - first // self.num_generations for row in range(rows)]

        def _tokenize_prompts(self, prompts: Sequence[Any]) -> tuple[list[list[int]], list[list[int]], dict[str, Any]]:
            numbers = self._prompt_numbers(len(prompts))
            distinct = [prompts[numbers.index(number)] for number in range(numbers[-1] + 1)]
            tokens, images, fields = super()._tokenize_prompts(distinct)
            counts = [len(own or []) for own in images or [[]] * len(distinct)]
            self.prompts = self.vlm.prompts(tokens, counts, fields)
            return [tokens[number] for number in numbers], [[number] for number in numbers], {}

        def _generate_single_turn(
            self, prompt_ids: Any, images: list[list[int]], fields: Any, num_generations: int, *_: Any, **__: Any
        ) -> tuple[list[list[int]], None]:
            # Not `eval()`: on a CPU bitsandbytes would then repack its weights for good, into a form without gradients.
            checkpointing_off = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
            with checkpointing_off, self.accelerator.autocast():
                return sample(self.vlm, self.prompts, [own[0] for own in images], self._sampling()), None

        def _sampling(self) -> Sampling:
            options = self.generation_kwargs
            return Sampling(
                self.max_completion_length,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                end_tokens=tuple(self.eos_token_ids),
                suppressed=tuple(options.get("suppress_tokens") or ()),
                stop_strings=tuple(options.get("stop_strings") or ()),
                tokenizer=self._tokenizer,
            )

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            processor = self.processing_class
            self.processing_class = _NumbersForImages(processor)
            try:
                return super()._generate_and_score_completions(inputs)
            finally:
                self.processing_class = processor

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            # TRL shuffles the rows, which takes groups apart; one step's order changes nothing but rounding.
            names = inspect.unwrap(base._prepare_inputs).__globals__
            with mock.patch.dict(names, shuffle_sequence_dict=lambda batch: batch):
                return super()._prepare_inputs(generation_batch)

        def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
            if self.beta == 0 and not self._entropy_bonus_enabled:
                self.skipped_rows = inputs["advantages"] == 0  # whose loss and gradient are 0 whatever they hold
            try:
                return self._compute_loss(model, inputs)
            finally:
                self.skipped_rows = None

        def _get_per_token_logps_and_entropies(
            self,
            model: Any,
            input_ids: Tensor,
            attention_mask: Tensor,
            logits_to_keep: int,
            batch_size: int | None = None,
            *,
            pixel_values: Tensor,
            **_: Any,
        ) -> tuple[Tensor, Tensor, None]:
            ids, mask = input_ids[:, -logits_to_keep:], attention_mask[:, -logits_to_keep:].bool()
            if self.skipped_rows is not None:
                mask = mask & ~self.skipped_rows[:, None]
            size = batch_size or len(ids)
            parts = zip(ids.split(size), mask.split(size), pixel_values[:, 0].split(size), strict=True)
            scored = [self._score(*part) for part in parts if part[1].any()]
            zeros = ids.new_zeros(ids.shape, dtype=torch.float32)
            if not scored:
                return zeros + self._no_gradient(), zeros, None
            logps, entropies = (zeros.masked_scatter(mask, torch.cat(flat)) for flat in zip(*scored, strict=True))
            return logps, entropies if self._entropy_bonus_enabled else entropies.detach(), None

        def _score(self, ids: Tensor, mask: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            rows = [row for row in range(len(ids)) if mask[row].any()]
            groups = [
                (self.prompts[number], [ids[row][mask[row]] for row in members])
                for number, members in itertools.groupby(rows, key=lambda row: int(numbers[row]))
            ]
            return self.schedule.score(self.vlm, groups, self.temperature, self.accelerator.autocast)

        def _no_gradient(self) -> Tensor:
            """A zero that depends on every trained parameter: a batch that teaches nothing has the gradient 0."""
            trained = [parameter.sum() for parameter in self.model.parameters() if parameter.requires_grad]
            return torch.stack(trained).sum() * 0.0

    return SharedPromptTrainer


class _NumbersForImages:
    """A processor that, when TRL processes the images of all rows once more, hands back their numbers."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *, images: list[list[int]], **_: Any) -> dict[str, Tensor]:
        return {"pixel_values": torch.tensor(images)}
