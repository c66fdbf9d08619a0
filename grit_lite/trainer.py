"""GRPO-GR: TRL's GRPO trainer with GRIT's rewards, in the few overrides that it takes.

The loss, the reference pass with the adapter switched off, generation, optimizer and schedule are TRL's. What is ours:
which prompt comes at which step, the scoring of completions, one row of metrics a step, checkpoints that cannot be half
written, and a stop before the first number that is not finite reaches the weights.

Every random draw of a step starts from (seed, step). A resumed run therefore needs no saved generator state to continue
as if it had never stopped, and the order of prompts is fixed for the whole run before it starts.
"""

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from datasets import Dataset

from grit_lite import processes
from grit_lite.answer import has_valid_format, parse
from grit_lite.backends import Backend, Request, can_stage, verify_arguments
from grit_lite.errors import Diverged, ModelError
from grit_lite.fitting import Failure
from grit_lite.memory import SHARE, fitting_schedule, free_bytes
from grit_lite.packing import PACKED, Schedule
from grit_lite.recipe import Recipe
from grit_lite.rewards import Scorer, valid_boxes
from grit_lite.run import METRICS, SAMPLES, TIMING, Run, write_json
from grit_lite.sharing import share_prompts
from grit_lite.triplets import Triplet
from grit_lite.vlm import shares_prompts

# GRIT's loss (arXiv 2505.15879, section 3; grpo-gr/ of the released code): on-policy, advantages divided by the group's
# deviation, mean over a completion's tokens, then over completions; its k3 KL is not weighted by the policy ratio,
# whose value is 1 on-policy but whose gradient is not 0. The others are TRL's forms of Dr. GRPO (2503.20783), DAPO
# (2503.14476) and GSPO (2507.18071).
LOSSES: dict[str, dict[str, Any]] = {
    "grit": {"loss_type": "grpo", "scale_rewards": "group", "use_bias_correction_kl": False},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "scale_rewards": "group", "epsilon_high": 0.28},
    "gspo": {"loss_type": "grpo", "scale_rewards": "group", "importance_sampling_level": "sequence"},
}


def prompt_order(triplets: int, prompts: int, seed: int) -> list[int]:
    """Which triplet stands at each prompt of the whole run: one shuffled pass over all of them after another."""
    generator = torch.Generator().manual_seed(seed)
    passes = -(-prompts // triplets)
    order = [index for _ in range(passes) for index in torch.randperm(triplets, generator=generator).tolist()]
    return order[:prompts]


def prompt_dataset(triplets: Sequence[Triplet], backend: Backend, recipe: Recipe) -> Dataset:
    """One row for each prompt of the run, in order; images are read when a row is."""
    prompts = backend.spec.prompts  # not the backend: datasets pickles what `render` names, for a fingerprint of it
    order = prompt_order(len(triplets), recipe.steps * recipe.prompts_per_step, recipe.seed)

    def render(batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        rows = [triplets[index] for index in batch["triplet"]]
        texts = [prompts.render(row.question, style="grounded") for row in rows]
        images = {index: triplets[index].load_image() for index in set(batch["triplet"])}
        return {
            "triplet": batch["triplet"],
            "prompt": [[{"role": "user", "content": text}] for text in texts],
            "images": [[images[index]] for index in batch["triplet"]],
        }

    return Dataset.from_dict({"triplet": order}).with_transform(render)


class CompletionScorer:
    """TRL's reward function: scores completions and keeps what became of each for the run folder."""

    __name__ = "total"

    def __init__(self, triplets: Sequence[Triplet], backend: Backend, scorer: Scorer) -> None:
        self.triplets = triplets
        self.backend = backend
        self.scorer = scorer
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._sizes: dict[int, tuple[int, int]] = {}

    def __call__(
        self, completion_ids: Sequence[Sequence[int]], triplet: Sequence[int], trainer_state: Any, **_: Any
    ) -> list[float | None]:
        started = time.perf_counter()
        texts = self.backend.processor.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        step = trainer_state.global_step + 1
        columns = list(zip(texts, completion_ids, triplet, strict=True))
        self.rows = processes.together(lambda: self._rows(step, columns))
        self.seconds = time.perf_counter() - started
        return [row["scores"]["total"] for row in self.rows]

    def _rows(self, step: int, columns: Sequence[tuple[str, Sequence[int], int]]) -> list[dict[str, Any]]:
        if isinstance(self.scorer, Scorer):
            texts = [text for text, _, _ in columns]
            self.scorer.ask_ahead(texts, [self.triplets[index] for _, _, index in columns])
        return [self._row(step, text, ids, index) for text, ids, index in columns]

    def _row(self, step: int, text: str, ids: Sequence[int], index: int) -> dict[str, Any]:
        triplet, resized = self.triplets[index], self._resized(index)
        space = self.backend.spec.box_space
        answer = parse(text)
        boxes = valid_boxes(answer, image_size=space.extent(resized))
        return {
            "step": step,
            "triplet": triplet.id,
            "image": f"images/{triplet.id}.png",
            "size": list(triplet.size),
            "question": triplet.question,
            "gold": triplet.answer,
            "dataset": triplet.dataset,
            "completion": text,
            "tokens": len(ids),
            "valid_format": has_valid_format(answer),
            "boxes": [space.to_pixels(box, original=triplet.size, resized=resized) for box in boxes],
            "scores": self.scorer(text, triplet, completion_ids=ids, image_size=space.extent(resized)),
        }

    def _resized(self, index: int) -> tuple[int, int]:
        if index not in self._sizes:
            self._sizes[index] = self.backend.resized(self.triplets[index].load_image())
        return self._sizes[index]


def metrics_row(
    step: int,
    samples: Sequence[Mapping[str, Any]],
    logs: Mapping[str, Any],
    group: int,
    sampler_gap: float | None = None,
) -> dict[str, Any]:
    """What one step amounted to; nothing in it depends on the clock.

    Args:
        samples: the step's rows, groups of `group` in a row, each with its advantage.
        logs: what TRL logged of the same step.
        sampler_gap: mean over tokens of |trainer's - sampler's log-probability|, in nats; None where they are one.
    """
    terms = {f"reward/{term}": _mean(row["scores"][term] for row in samples) for term in samples[0]["scores"]}
    groups = [samples[start : start + group] for start in range(0, len(samples), group)]
    return {
        "step": step,
        "reward": terms.pop("reward/total"),
        **terms,
        "groups_that_teach": _mean(any(row["advantage"] != 0 for row in rows) for rows in groups),
        "valid_format": _mean(row["valid_format"] for row in samples),
        "completion_tokens": _mean(row["tokens"] for row in samples),
        "kl": logs.get("kl"),
        "sampler_gap": sampler_gap,
        "loss": logs["loss"],
        "grad_norm": logs["grad_norm"] if math.isfinite(logs["grad_norm"]) else None,  # of an update that was left out
        "lr": logs["learning_rate"],
    }


def _mean(values: Any) -> float | None:
    """The mean of what is there; None where every sample abstained."""
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def choose_schedule(backend: Backend, recipe: Recipe, triplets: Sequence[Triplet], run: Run) -> Schedule:
    """The recipe's schedule, or the one that fits; a resumed run keeps its own, because another rounds differently."""
    stages = can_stage(backend.name, recipe)
    if recipe.prompt_sharing == "staged" and not stages:
        raise ModelError(
            "prompt_sharing is staged, and Unsloth's gradient checkpointing cannot run a pass in stages. Set "
            "prompt_sharing=packed with a lower completions_per_pass, gradient_checkpointing=false, or backend=plain."
        )
    if recipe.prompt_sharing != "auto" or not stages:
        schedule = Schedule(recipe.prompt_sharing == "staged", recipe.completions_at_once)
        run.update(schedule=asdict(schedule))
        return schedule
    if known := run.facts().get("schedule"):
        return Schedule(**known)
    model = backend.model
    schedule = fitting_schedule(
        model.config.get_text_config(),
        room=int(SHARE * free_bytes(model.device)),
        rows=recipe.of_one(processes.count())[1],
        group=recipe.group_size,
        prompt=longest_prompt(backend, triplets),
        completion=recipe.max_completion_tokens,
        itemsize=model.dtype.itemsize,
        checkpointing=recipe.gradient_checkpointing,
    )
    cap = recipe.completions_at_once
    if schedule.staged:
        schedule = Schedule(staged=True, at_once=min(schedule.at_once or 1, cap or recipe.group_size))
        run.changed(f"prompt_sharing: staged, {schedule.at_once} at once, because one packed row would not fit")
    else:
        schedule = Schedule(at_once=cap)
    run.update(schedule=asdict(schedule))
    return schedule


def longest_prompt(backend: Backend, triplets: Sequence[Triplet]) -> int:
    """Tokens of the longest prompt, as far as the largest image and the longest question show it."""
    largest = max(triplets, key=lambda row: row.size[0] * row.size[1])
    wordiest = max(triplets, key=lambda row: len(row.question))
    texts = [(row, backend.spec.prompts.render(row.question, style="grounded")) for row in (largest, wordiest)]
    return max(backend.prompt_tokens(Request((row.load_image(),), text)) for row, text in texts)


def sampling_arguments(backend: Backend, recipe: Recipe) -> dict[str, Any]:
    """Who samples, this process or vLLM, and what the loss makes of the difference between sampler and trainer."""
    arguments = {
        "top_k": recipe.top_k,
        "use_vllm": False,  # else TRL would open an engine of its own, where ours is open or none is wanted
        "generation_kwargs": {"suppress_tokens": backend.suppressed_tokens()},
        # TRL's own values, after "When Speed Kills Stability" (2025): a completion that the trainer finds more than
        # three times as likely as its sampler did is left out.
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_max": 3.0,
        "vllm_importance_sampling_clip_min": None,
    }
    if recipe.vllm_server is not None:  # TRL updates its weights before each rollout
        bias = dict.fromkeys(map(str, backend.suppressed_tokens()), -100.0)
        server = {"vllm_mode": "server", "vllm_server_base_url": recipe.vllm_server}
        return {**arguments, **server, "use_vllm": True, "generation_kwargs": {"logit_bias": bias}}
    if backend.engine is not None and backend.engine.shared:  # Unsloth's, which says -1 for the whole vocabulary
        return {**arguments, "use_vllm": True, "top_k": -1}
    return arguments


@contextlib.contextmanager
def server_explained(backend: Backend, recipe: Recipe) -> Iterator[None]:
    """Says how to start the server that does not answer."""
    try:
        yield
    except OSError as error:
        if recipe.vllm_server is None:
            raise
        pixels = json.dumps(dict(backend.processor.image_processor.size))
        raise ModelError(
            f"The vLLM server {recipe.vllm_server} does not answer: {error}\nStart it first, on GPUs that this run "
            f"does not use: VLLM_SERVER_DEV_MODE=1 vllm serve {recipe.model} --weight-transfer-config "
            f'\'{{"backend": "nccl"}}\' --logprobs-mode processed_logprobs --max-logprobs -1 '
            f"--mm-processor-kwargs '{{\"size\": {pixels}}}'"
        ) from error


def build_trainer(
    backend: Backend,
    recipe: Recipe,
    triplets: Sequence[Triplet],
    run: Run,
    scorer: Scorer,
    *,
    on_step: Callable[[dict[str, Any], dict[str, Any], list[dict[str, Any]]], None],
    stop_requested: Callable[[], bool],
) -> Any:
    """A trainer on the backend's own trainer class, which exists only once the backend has been opened.

    Args:
        on_step: called after each step with its row of metrics, its row of timing, and its samples.
        stop_requested: asked after each step; True ends training with a checkpoint.
    """
    config_type, base = backend.trainer_types()
    total, per_pass = recipe.of_one(processes.count())
    on_cuda = next(backend.model.parameters()).device.type == "cuda"
    # Every value that decides a result is passed, because the backends' libraries differ in their defaults.
    arguments = {
        "output_dir": str(run.staging),
        "max_steps": recipe.steps,
        "per_device_train_batch_size": per_pass,
        "gradient_accumulation_steps": total // per_pass,
        "steps_per_generation": total // per_pass,
        "num_generations": recipe.group_size,
        "num_iterations": 1,
        "max_completion_length": recipe.max_completion_tokens,
        "temperature": recipe.temperature,
        "top_p": recipe.top_p,
        "min_p": None,
        "repetition_penalty": 1.0,
        "beta": recipe.beta,
        "epsilon": 0.2,
        "epsilon_high": None,
        "importance_sampling_level": "token",
        "use_bias_correction_kl": True,
        "mask_truncated_completions": False,
        **LOSSES[recipe.loss],
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.lr_schedule,
        "warmup_steps": recipe.warmup_steps,
        "optim": "adamw_torch",
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "bf16": on_cuda and backend.model.dtype is torch.bfloat16,
        "fp16": on_cuda and backend.model.dtype is torch.float16,
        "use_cpu": not on_cuda,
        **sampling_arguments(backend, recipe),
        "shuffle_dataset": False,  # `prompt_order` is the order
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would replace a NaN loss by the running mean, in the logs only
        "save_strategy": "steps",
        "save_steps": recipe.save_every,
        "report_to": "none",
        "disable_tqdm": True,
        "log_completions": False,
        "log_multimodal": False,
    }
    config = config_type(**arguments)
    completion_scorer = CompletionScorer(triplets, backend, scorer)
    sharing: dict[str, Any] = {}
    if recipe.prompt_sharing != "none" and shares_prompts(backend.model):
        base = share_prompts(base)
        sharing["schedule"] = processes.gathered([choose_schedule(backend, recipe, triplets, run)])[0]
        sharing["share_rollout"] = backend.shares_rollout
        sharing["rollout_at_once"] = recipe.completions_per_rollout
        if recipe.completions_per_rollout and not (backend.shares_rollout and backend.engine is None):
            run.changed("completions_per_rollout has no effect: the library samples a whole step at once")
        sharing["engine"] = backend.engine
    with server_explained(backend, recipe):
        trainer = _trainer_class(base)(
            model=backend.model,
            args=config,
            reward_funcs=[completion_scorer],
            train_dataset=prompt_dataset(triplets, backend, recipe),
            processing_class=backend.processor,
            **sharing,
        )
    verify_arguments(trainer, arguments)
    trainer.connect(run, recipe, completion_scorer, on_step, stop_requested)
    return trainer


def _trainer_class(base: type) -> type:
    """The trainer, as a subclass of whichever GRPOTrainer the backend handed out."""
    from transformers import PrinterCallback, TrainerCallback, set_seed

    class Guard(TrainerCallback):
        """Stops before an update that is not finite, and after a step when asked to."""

        def __init__(self, trainer: Any) -> None:
            self.trainer = trainer

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.trainer.phase = "update"
            parameters = [p for p in self.trainer.model.parameters() if p.grad is not None]
            finite = all(torch.isfinite(parameter.grad).all() for parameter in parameters)
            if not finite and not may_scale_lower(self.trainer.accelerator.scaler):
                self.trainer.report_divergence(state.global_step + 1, "the gradient is not finite; no update was made")

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not all(torch.isfinite(p).all() for p in self.trainer.model.parameters() if p.requires_grad):
                self.trainer.report_divergence(state.global_step + 1, "the update made the weights infinite or NaN")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.trainer.stop_requested():
                control.should_save = control.should_training_stop = True

    class GroundedReasoningTrainer(base):
        def connect(
            self, run: Run, recipe: Recipe, scorer: CompletionScorer, on_step: Any, stop_requested: Any
        ) -> None:
            self.run, self.recipe, self.scorer = run, recipe, scorer
            self.on_step, self.stop_requested = on_step, stop_requested
            self.rollout_seconds = 0.0
            self.step_started = time.perf_counter()
            self.phase = "starting"  # until its first rollout, then "rollout", "pass" and "update" of each step
            self.remove_callback(PrinterCallback)
            if "ref" in self.model.peft_config:
                # TRL copies an adapter that is already there, to train against the copy. Ours is fresh, so the model
                # without any adapter is the same reference, at no cost.
                self.model.delete_adapter("ref")
            for parameter in self.model.parameters():
                if parameter.requires_grad:  # on 4-bit weights TRL has made it bfloat16, in which small updates vanish
                    parameter.data = parameter.data.float()
            self.add_callback(Guard(self))

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            # A shared rollout draws for all processes in each; the library's own draws for its own rows only.
            offset = 0 if getattr(self, "share_rollout", False) else processes.index()
            seed = (self.recipe.seed << 20) + self.state.global_step + offset
            set_seed(seed % 2**32)  # the generators' seeds have 32 bits
            self.step_started = time.perf_counter()
            output = super()._generate_and_score_completions(inputs)
            for row, advantage in zip(self.scorer.rows, output["advantages"].tolist(), strict=True):
                row["advantage"] = advantage
            self.scorer.rows = processes.gathered(self.scorer.rows)
            return output

        def _generate(self, prompts: Any) -> Any:
            started = time.perf_counter()
            self.phase = "rollout"
            output = super()._generate(prompts)
            self.rollout_seconds = time.perf_counter() - started
            self.phase = "pass"
            return output

        def _generate_single_turn(self, *args: Any, **options: Any) -> Any:
            output: Any = None
            try:
                output = super()._generate_single_turn(*args, **options)
            except (FloatingPointError, RuntimeError) as error:
                # torch.multinomial has its own words for a NaN or an infinity
                if not isinstance(error, FloatingPointError) and "probability tensor" not in str(error):
                    raise
            if None in processes.gathered([output and True]):
                self.report_divergence(self.state.global_step + 1, "the model gives no finite probabilities any more")
            return output

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs, start_time)  # adds what TRL measured to `logs`
            if "loss" in logs:
                self._record(self.state.global_step, logs)

        def _record(self, step: int, logs: Mapping[str, Any]) -> None:
            samples = self.scorer.rows
            metrics = metrics_row(step, samples, logs, self.recipe.group_size, getattr(self, "sampler_gap", None))
            timing = self._timing(step, sum(row["tokens"] for row in samples))
            self.run.append(SAMPLES, samples)
            self.run.append(METRICS, [metrics])
            self.run.append(TIMING, [timing])
            self.phase = "pass"  # weights, optimizer and rows are those of a whole step again
            self.on_step(metrics, timing, samples)

        def _timing(self, step: int, tokens: int) -> dict[str, Any]:
            seconds = time.perf_counter() - self.step_started
            return {
                "step": step,
                "seconds": seconds,
                "rollout": self.rollout_seconds,
                "reward": self.scorer.seconds,
                "update": seconds - self.rollout_seconds - self.scorer.seconds,
                "tokens_per_second": tokens / self.rollout_seconds,
                "memory_mib": peak_memory_mib(),
            }

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            super()._save_checkpoint(model, trial)
            if not processes.is_first():
                return
            staged = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            (staged / "training_args.bin").unlink()  # a pickle that nothing here reads; recipe.yaml says the same
            self.run.commit_checkpoint(staged, self.state.global_step)

        def _save_rng_state(self, output_dir: str) -> None:
            """Nothing reads it: every draw starts from (seed, step)."""

        def failure(self, said: str) -> Failure:
            """What did not fit, when a step has ended in a failed allocation."""
            schedule = getattr(self, "schedule", PACKED)
            staged = (schedule.at_once or 1) if schedule.staged else None
            return Failure(self.state.global_step + 1, self.phase, said, staged)

        def keep_last_step(self) -> None:
            """A checkpoint of the last whole step, where a step has ended before its update began."""
            newest = self.run.latest_checkpoint()
            if self.phase in ("rollout", "pass") and (newest is None or newest[0] < self.state.global_step):
                self._save_checkpoint(self.model, None)

        def report_divergence(self, step: int, what: str) -> NoReturn:
            """Every process has to come here."""
            path = self.run.folder / f"diverged-step-{step:06d}.json"
            if processes.is_first():
                write_json(path, {"step": step, "samples": self.scorer.rows})
            error = Diverged(
                f"Step {step}: {what}. The last batch of completions is in {path}. Start again with a lower "
                "learning_rate or max_grad_norm, or with dtype=float32."
            )
            raise processes.known_to_all(error)

    return GroundedReasoningTrainer


def may_scale_lower(scaler: Any) -> bool:
    """Whether a gradient that is not finite is only float16's: its scaler leaves the update out and halves its scale.

    Args:
        scaler: torch's GradScaler; None in every other number format.
    """
    return scaler is not None and scaler.get_scale() > 1


def peak_memory_mib() -> float:
    """The highest use so far, in MiB: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20 if sys.platform == "darwin" else kib / 2**10  # macOS counts bytes
