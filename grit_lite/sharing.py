"""Shared prompts in TRL's GRPO trainer: the pass of `packing` and the rollout of `rollout`, in a handful of overrides.

TRL carries everything row by row, so that a prompt and its images exist G times. Here each distinct prompt exists once,
in `prompts`, and what stands in TRL's batch in place of a row's images is the number of its prompt. The loss, the
rewards, the advantages and the optimizer stay TRL's.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from grit_lite.engine import Engine, EnginePrompt
from grit_lite.packing import PACKED, Schedule
from grit_lite.rollout import Sampling, sample
from grit_lite.vlm import Prompt, VisionLanguageModel


def share_prompts(base: type) -> type:
    """The subclass of a GRPOTrainer, TRL's own or one that was derived from its source, that runs every prompt once.

    Its constructor takes, beside the base's arguments, the `schedule` of its passes and who samples: a vLLM `engine`,
    else `rollout` (`share_rollout`, `rollout_at_once` completions at the same time), else the base, which then runs a
    prompt once for each completion. It is for a model with an adapter and without dropout, and TRL's own loop of prompt
    and completion; in several processes, for steps whose groups are not divided between them.

    Raises:
        ValueError: by the constructor, where the settings ask for what the shared pass or rollout does not do.
    """

    # Only now: TRL loads PEFT and bitsandbytes, and a backend may want to come before them.
    from trl.models.utils import disable_gradient_checkpointing

    class SharedPromptTrainer(base):
        def __init__(
            self,
            *args: Any,
            schedule: Schedule = PACKED,
            share_rollout: bool = True,
            rollout_at_once: int | None = None,
            engine: Engine | None = None,
            **options: Any,
        ) -> None:
            super().__init__(*args, **options)
            self.vlm = VisionLanguageModel(self.model)
            self.schedule = schedule
            self.share_rollout = share_rollout
            self.rollout_at_once = rollout_at_once
            self.engine = engine
            self.prompts: dict[str, list[Prompt]] = {}  # of the last rollout in training, and in evaluation
            self.images: dict[str, list[Any]] = {}  # of the same prompts, as they came: a list or None each
            self.sampler_gap: float | None = None
            self.skipped_rows: Tensor | None = None
            if problems := _not_shareable(self):
                raise ValueError(f"prompts cannot be shared with {', '.join(problems)}")

        @property
        def _mode(self) -> str:
            return "train" if self.model.training else "eval"

        def _tokenize_prompts(self, prompts: Sequence[Any]) -> tuple[list[list[int]], list[list[int]], dict[str, Any]]:
            group = self.num_generations if self.model.training else self.num_generations_eval
            distinct = prompts[::group]  # TRL repeats each prompt in consecutive rows
            tokens, images, fields = super()._tokenize_prompts(distinct)
            self.images[self._mode] = images or [None] * len(distinct)
            counts = [len(own or []) for own in self.images[self._mode]]
            self.prompts[self._mode] = self.vlm.prompts(tokens, counts, fields)
            numbers = [row // group for row in range(len(prompts))]
            return [tokens[number] for number in numbers], [[number] for number in numbers], {}

        def _generate_single_turn(
            self, prompt_ids: Any, images: list[list[int]], fields: Any, num_generations: int, *_: Any, **__: Any
        ) -> tuple[list[list[int]], list[list[float]] | None]:
            if self.engine is not None:
                return self._sample_by_engine(self.engine, prompt_ids[::num_generations], num_generations)
            if not self.share_rollout:
                repeated = self.vlm.fields([self.prompts[self._mode][own[0]] for own in images])
                own_images = [self.images[self._mode][own[0]] for own in images]
                return super()._generate_single_turn(prompt_ids, own_images, repeated, num_generations)
            # Not `eval()`: on a CPU bitsandbytes would then repack its weights for good, into a form without gradients.
            checkpointing_off = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
            with checkpointing_off, self.accelerator.autocast():
                owners = [own[0] for own in images]
                sampling = dataclasses.replace(self._sampling(), elsewhere=self._elsewhere(len(owners)))
                return sample(self.vlm, self.prompts[self._mode], owners, sampling, self.rollout_at_once), None

        def _elsewhere(self, rows: int) -> tuple[int, int]:
            """How many rows the processes before this one and those after it sample."""
            before = self.accelerator.process_index
            return before * rows, (self.accelerator.num_processes - 1 - before) * rows

        def _sample_by_engine(
            self, engine: Engine, tokens: Sequence[list[int]], number: int
        ) -> tuple[list[list[int]], list[list[float]]]:
            rows = zip(tokens, self.images[self._mode], strict=True)
            prompts = [EnginePrompt(ids, images or []) for ids, images in rows]
            completions = [one for group in engine.sample(prompts, self._sampling(), number) for one in group]
            return [one.tokens for one in completions], [one.logps for one in completions]

        def _sampling(self) -> Sampling:
            options = self.args.generation_kwargs or {}
            stop = options.get("stop_strings") or ()
            return Sampling(
                self.max_completion_length,
                temperature=self.temperature,
                top_k=max(self.top_k, 0),  # with an engine Unsloth says -1 for all
                top_p=self.top_p,
                end_tokens=tuple(self.eos_token_ids),
                suppressed=tuple(options.get("suppress_tokens") or ()),
                stop_strings=(stop,) if isinstance(stop, str) else tuple(stop),
                tokenizer=self._tokenizer,
            )

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            processor = self.processing_class
            self.processing_class = _NumbersForImages(processor)
            if self.engine is not None:
                # TRL corrects for another sampler then. Only now: its constructor would open one of its own.
                self.use_vllm = True
            try:
                output = super()._generate_and_score_completions(inputs)
            finally:
                self.processing_class = processor
            if self.use_vllm:
                self._correct_for_sampler(output)
            return output

        def _correct_for_sampler(self, output: dict[str, Any]) -> None:
            """Measure the sampler's gap, and weigh completions by it where the base has left that to its own loss.

            Unsloth's trainer has the computation in its loss, which is not on our way, and takes it out of TRL's.
            """
            mask = output["completion_mask"].bool()
            gaps = output["old_per_token_logps"] - output["sampling_per_token_logps"]
            gaps = gaps.nan_to_num(nan=0.0)  # what a server cannot score, TRL does not correct
            sums = torch.stack([gaps[mask].abs().sum(), mask.sum()])
            total, tokens = self.accelerator.reduce(sums, reduction="sum").tolist()
            self.sampler_gap = total / tokens
            ratio = gaps.sum(1, keepdim=True).exp()  # TRL's `sequence_mask`; in the padding both are 0
            weights = ratio.masked_fill(ratio > self.vllm_importance_sampling_clip_max, 0)
            output.setdefault("importance_sampling_ratio", weights)

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            # TRL shuffles the rows of a rollout, which takes groups apart: each micro-batch would run every prompt.
            with mock.patch.dict(_names_of(base._prepare_inputs), shuffle_sequence_dict=lambda batch: batch):
                return super()._prepare_inputs(generation_batch)

        def training_step(self, *args: Any, **options: Any) -> Tensor:
            loss = super().training_step(*args, **options)
            if self.accelerator.num_processes > 1 and self.accelerator.sync_gradients:
                self._average_gradients()
            return loss

        def _average_gradients(self) -> None:
            """DistributedDataParallel does this for a forward pass of its own, and the shared pass calls the parts."""
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
            mean = self.accelerator.reduce(parameters_to_vector(gradients), reduction="mean")
            for parameter, gradient in zip(trained, mean.split([one.numel() for one in trained]), strict=True):
                parameter.grad = gradient.view_as(parameter)

        def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
            if self.beta == 0 and self.top_entropy_quantile == 1:
                self.skipped_rows = inputs["advantages"] == 0  # whose loss and gradient are 0 whatever they hold
                inputs = _forget_old(inputs, inputs["advantages"] == 0)
            try:
                loss = self._compute_loss(model, inputs)
                self._correct_entropy(inputs["completion_mask"])
                return loss
            finally:
                self.skipped_rows = None

        def _correct_entropy(self, mask: Tensor) -> None:
            """TRL's mean counts rows that were skipped as certain; what is logged is that of the others."""
            logged = self._metrics[self._mode].get("entropy")
            if self.skipped_rows is None or not logged:
                return
            tokens = torch.stack([mask.sum(), mask[~self.skipped_rows].sum()])
            every, scored = self.accelerator.reduce(tokens, reduction="sum").tolist()
            if scored:
                logged[-1] *= every / scored

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
            parts = zip(*(rows.split(batch_size or len(ids)) for rows in (ids, mask, pixel_values[:, 0])), strict=True)
            logps, entropies = (torch.cat(rows) for rows in zip(*(self._score(*part) for part in parts), strict=True))
            if not mask.any() and torch.is_grad_enabled():
                logps = logps + self._no_gradient()
            return logps, entropies, None

        def _score(self, ids: Tensor, mask: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            """(B, C) log-probabilities and entropies of completions (B, C), 0 where the mask (B, C) is."""
            owners, prompts = numbers.tolist(), self.prompts[self._mode]
            rows = sorted((row for row, live in enumerate(mask.any(1).tolist()) if live), key=lambda row: owners[row])
            zeros = ids.new_zeros(ids.shape, dtype=torch.float32)
            if not rows:
                return zeros, zeros
            groups = [
                (prompts[owner], [ids[row][mask[row]] for row in members])
                for owner, members in itertools.groupby(rows, key=lambda row: owners[row])
            ]
            scored = self.schedule.score(self.vlm, groups, self.temperature, self.accelerator.autocast)
            cells = torch.arange(ids.numel(), device=ids.device).view_as(ids)[rows][mask[rows]]
            logps, entropies = (zeros.flatten().scatter(0, cells, flat).view_as(zeros) for flat in scored)
            return logps, entropies

        def _no_gradient(self) -> Tensor:
            """A zero that depends on every trained parameter: a batch that teaches nothing has the gradient 0."""
            trained = [parameter.sum() for parameter in self.model.parameters() if parameter.requires_grad]
            return torch.stack(trained).sum() * 0.0

    return SharedPromptTrainer


def _forget_old(inputs: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Old log-probabilities of rows that are not scored again would make ratios that no float holds."""
    old = inputs.get("old_per_token_logps")
    return inputs if old is None else {**inputs, "old_per_token_logps": old.masked_fill(rows[:, None], 0)}


def _not_shareable(trainer: Any) -> list[str]:
    """The settings under which the shared computation would silently not be TRL's."""
    known = {"suppress_tokens", "stop_strings"}
    problems = {
        "groups that are divided between processes": _divides_groups(trainer),
        "a reference model of its own (train an adapter)": trainer.ref_model is not None,
        "vLLM, but through an `Engine` or a server": trainer.use_vllm
        and trainer.engine is None
        and (trainer.share_rollout or trainer.vllm_mode != "server"),
        "a correction for the sampler other than sequence_mask with an upper limit alone": trainer.engine is not None
        and not _masks_sequences(trainer),
        "tools": trainer.tools,
        "environments": trainer.environment_factories is not None,
        "a rollout_func": trainer.rollout_func is not None,
        "an entropy bonus": trainer._entropy_bonus_enabled,
        "an auxiliary loss": trainer.aux_loss_enabled,
        "min_p": trainer.min_p,
        "a repetition penalty": trainer.repetition_penalty != 1,
        "generation_kwargs other than suppress_tokens and stop_strings": trainer.share_rollout
        and {*(trainer.args.generation_kwargs or ())} - known,
        "images in the log": trainer.args.log_completions and trainer.log_multimodal,
        "dropout": any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in trainer.vlm.language.modules()),
    }
    return [name for name, present in problems.items() if present]


def _divides_groups(trainer: Any) -> bool:
    args, group = trainer.args, trainer.num_generations
    rows = args.per_device_train_batch_size * args.steps_per_generation
    evaluated = trainer.eval_dataset is not None and args.per_device_eval_batch_size % trainer.num_generations_eval
    return trainer.accelerator.num_processes > 1 and bool(rows % group or evaluated)


def _masks_sequences(trainer: Any) -> bool:
    limits = (trainer.vllm_importance_sampling_clip_min, trainer.vllm_importance_sampling_clip_max)
    mode = trainer.vllm_importance_sampling_mode
    return trainer.vllm_importance_sampling_correction and mode == "sequence_mask" and limits[0] is None and limits[1]


def _names_of(method: Any) -> dict[str, Any]:
    """The module in which a method's function looks names up."""
    return inspect.unwrap(method).__globals__


class _NumbersForImages:
    """A processor that, when TRL processes the images of all rows once more, hands back their numbers."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *, images: list[list[int]], **_: Any) -> dict[str, Tensor]:
        return {"pixel_values": torch.tensor(images)}
