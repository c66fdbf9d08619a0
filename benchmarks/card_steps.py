"""Whole GRPO steps of one trainer on one backend: the first is checked, the second warms up, the others are timed.

`card_side` imports this after the libraries of its backend, because Unsloth rewrites what stands below.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback

from benchmarks.card_side import LARGEST, SIDES, Job
from benchmarks.equality import Unequal, apart, close, close_gradients, same_tokens
from benchmarks.measure import MIB, Clock, Meter, Seconds, device, median
from benchmarks.setting import SEED, endless, plain_attention, question
from benchmarks.step import PARTS, PHASES, Boundaries, Step, observed
from grit_lite.backends import open_backend, verify_arguments
from grit_lite.memory import adapter_bytes, model_sizes, pass_bytes, rollout_bytes, weight_bytes
from grit_lite.sharing import share_prompts

WARM_UP = 2  # steps before the first that is timed
_FIELDS = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")  # of a batch, what the scorers read


def measure(job: Job) -> dict[str, Any]:
    """The `status`, and what belongs to it: numbers, what differs, or where memory ran out."""
    clock = Clock(device())
    try:
        return _measure(job, clock)
    except Unequal as difference:
        return {"status": "not equal", "reason": str(difference)}
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        return {"status": "out of memory", "phase": clock.where or "loading", "reason": str(error).splitlines()[0]}


def _measure(job: Job, clock: Clock) -> dict[str, Any]:
    torch.backends.cudnn.allow_tf32 = False  # float32 is compared to be equal
    ballast = _fill(job.card_gib)
    backend = _open(job)
    facts = {**backend.describe(), "attention": backend.model.config.get_text_config()._attn_implementation}
    del facts["model"]  # a folder of this machine; the case names the shape
    with tempfile.TemporaryDirectory() as output:
        clock.meter = meter = Meter(clock.device)
        step = FirstStep(clock, meter)
        trainer = _trainer(job, backend, step, output)
        course = Course(job, step, trainer)
        trainer.add_callback(course)
        trainer.train()
    return {
        "status": "timed",
        "rows": job.rows,
        "differences": course.differences,
        **course.times(),
        "memory": course.memory(ballast.nbytes),
        "estimate": _estimate(job, backend),
        "facts": facts | {"autocast": _precision(trainer)},
    }


def _fill(card_gib: float | None) -> Tensor:
    """So much of the card that what is left is a smaller one, also for a library that asks how much there is."""
    if card_gib is None:
        return torch.empty(0, dtype=torch.uint8)
    _, total = torch.cuda.mem_get_info()
    return torch.empty(int(total - card_gib * 2**30), dtype=torch.uint8, device="cuda")


def _open(job: Job) -> Any:
    backend: Any = open_backend(job.recipe())
    backend.processor.image_processor.size["longest_edge"] = LARGEST
    backend.attach_lora(backend.recipe)
    _draw_adapter(backend.model)
    if not SIDES[job.side].shared:
        plain_attention(backend)
    return backend


@torch.no_grad()
def _draw_adapter(model: Any) -> None:
    """The same in every library, as after some training: B is not zero, and every value is one that bfloat16 has."""
    generator = torch.Generator().manual_seed(SEED)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for _, weight in sorted(trained.items()):
        std = 0.02 if weight.shape[0] > weight.shape[1] else weight.shape[1] ** -0.5  # B is higher than wide
        weight.copy_((std * torch.randn(weight.shape, generator=generator)).bfloat16())


class FirstStep(Step):
    """Keeps gradients of the checked step only: a copy of them would be part of the peaks."""

    def __init__(self, clock: Clock, meter: Meter) -> None:
        super().__init__(clock)
        self.answers, self.meter = Answers(), meter

    def keep(self, trainer: Any, loss: Tensor) -> None:
        if trainer.state.global_step == 0:
            super().keep(trainer, loss)


@dataclass
class Answers:
    """What a side computed in its first step.

    Attributes:
        sampled: the tokens of its own seeded rollout.
        logps: of given completions, under the policy and under the reference; (B, C) each.
        precision: "float32", or what the trainer's matrices are multiplied in.
    """

    sampled: list[list[int]] = field(default_factory=list)
    logps: dict[str, Tensor] = field(default_factory=dict)
    loss: float = 0.0
    gradients: dict[str, Tensor] = field(default_factory=dict)
    precision: str = "float32"

    def compare(self, other: "Answers", tolerance: float) -> dict[str, float]:
        """How far the other is from this one; in float32 it must be equal, else its log-probabilities must be near.

        Raises:
            Unequal: it is further away.
        """
        exact = self.precision == other.precision == "float32"
        return self._equal(other) if exact else self._near(other, tolerance)

    def _equal(self, other: "Answers") -> dict[str, float]:
        same_tokens("sampled rollout", self.sampled, other.sampled)
        names = {name: f"log-probabilities ({name})" for name in self.logps}
        return {
            **{what: close(what, self.logps[name], other.logps[name]) for name, what in names.items()},
            "loss": close("loss", self.loss, other.loss),
            "gradient": close_gradients(self.gradients, other.gradients),
        }

    def _near(self, other: "Answers", tolerance: float) -> dict[str, float]:
        differences = {}
        for name, logps in self.logps.items():
            off = float((logps.double() - other.logps[name].double()).square().mean().sqrt())
            differences[f"log-probabilities ({name})"] = off
            if not off <= tolerance:
                raise Unequal(f"log-probabilities ({name}): {off:.3g} nats apart, allowed are {tolerance:.3g}")
        return differences | {"gradient": apart(_flat(self.gradients), _flat(other.gradients))}


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


def given(base: type, completions: list[list[int]], answers: Answers) -> type:
    """The trainer that goes on, in its first step, with these completions in the place of its own."""

    class GivenTrainer(base):
        def _generate_single_turn(self, *args: Any, **options: Any) -> Any:
            sampled, *others = super()._generate_single_turn(*args, **options)
            if self.state.global_step:
                return sampled, *others
            answers.sampled = [list(ids) for ids in sampled]
            return completions, *others

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            batch = super()._generate_and_score_completions(inputs)
            if not self.state.global_step:
                reference = batch["ref_per_token_logps"].float().cpu()
                answers.logps = {"policy": _policy_logps(self, batch), "reference": reference}
            return batch

    return GivenTrainer


@torch.no_grad()
def _policy_logps(trainer: Any, batch: Mapping[str, Any]) -> Tensor:
    """(B, C): as the trainer itself would for the policy that has sampled."""
    ids, mask = (torch.cat([batch[f"prompt_{kind}"], batch[f"completion_{kind}"]], dim=1) for kind in ("ids", "mask"))
    logps = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        ids,
        mask,
        batch["completion_ids"].shape[1],
        batch_size=trainer.args.per_device_train_batch_size,
        **{name: batch[name] for name in _FIELDS if name in batch},
    )[0]
    return logps.float().cpu()


def _trainer(job: Job, backend: Any, step: FirstStep, output: str) -> Any:
    side = SIDES[job.side]
    config_type, base = backend.trainer_types()
    sharing = {"share_rollout": side.shares_rollout} if side.shared else {}
    base = share_prompts(base) if side.shared else base
    arguments = _arguments(job, backend, output)
    trainer = observed(given(base, _completions(job, backend), step.answers), step)(
        model=backend.model,
        args=config_type(**arguments, **_mixed_precision(backend)),
        reward_funcs=[step.reward],
        train_dataset=_dataset(job, backend),
        processing_class=backend.processor,
        **sharing,
    )
    verify_arguments(trainer, arguments)
    if "ref" in trainer.model.peft_config:  # TRL's copy of the adapter; the reference is the model without any
        trainer.model.delete_adapter("ref")
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(job: Job, backend: Any, output: str) -> dict[str, Any]:
    """Every value that decides a result or its cost, because the libraries differ in their defaults."""
    return {
        "output_dir": output,
        "max_steps": WARM_UP + job.repeats,
        "per_device_train_batch_size": job.rows,
        "gradient_accumulation_steps": job.total // job.rows,
        "steps_per_generation": job.total // job.rows,
        "num_generations": job.group,
        "num_iterations": 1,
        "max_completion_length": job.completion_tokens,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
        "generation_kwargs": {"suppress_tokens": endless(backend)},
        "beta": 0.04,
        "loss_type": "dapo",  # the one in which Unsloth's own loss is TRL's
        "scale_rewards": "group",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "importance_sampling_level": "token",
        "use_bias_correction_kl": False,
        "mask_truncated_completions": False,
        "learning_rate": 1e-6,  # so that every step is nearly the same one
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "gradient_checkpointing": True,
        "use_vllm": False,
        "use_cpu": device().type == "cpu",
        "shuffle_dataset": False,
        "seed": SEED,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _mixed_precision(backend: Any) -> dict[str, bool]:
    """Not verified afterwards: of a float32 model on CUDA Unsloth makes a mixed one, and `_precision` says so."""
    on_cuda = device().type == "cuda"
    names = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return {name: on_cuda and backend.model.dtype is dtype for name, dtype in names.items()}


def _precision(trainer: Any) -> str:
    """The lowest in which anything is computed: also that of an adapter, which TRL makes bfloat16 on 4-bit weights."""
    lower = {"bfloat16": trainer.args.bf16, "float16": trainer.args.fp16}
    dtypes = {str(weight.dtype).removeprefix("torch.") for weight in trainer.model.parameters()}
    return next((name for name, mixed in lower.items() if mixed or name in dtypes), "float32")


def _completions(job: Job, backend: Any) -> list[list[int]]:
    """Random tokens, the same for every side, none of which ends a completion."""
    generator = torch.Generator().manual_seed(SEED)
    size = backend.model.config.get_text_config().vocab_size
    allowed = torch.tensor(sorted(set(range(size)) - set(endless(backend))))
    return allowed[torch.randint(len(allowed), (job.total, job.completion_tokens), generator=generator)].tolist()


def _dataset(job: Job, backend: Any) -> Dataset:
    """The same prompts in each step."""
    images = backend.processor.image_processor
    side = images.patch_size * images.merge_size
    requests = [question(job.prompt_tokens, number, side) for number in range(job.prompts)] * (WARM_UP + job.repeats)
    turns = [[{"role": "user", "content": request.text}] for request in requests]
    return Dataset.from_dict({"prompt": turns, "images": [[request.image] for request in requests]})


class Course(Boundaries):
    """Checks the first step, forgets the second, and keeps the times and the peaks of the others."""

    step: FirstStep

    def __init__(self, job: Job, step: FirstStep, trainer: Any) -> None:
        super().__init__(step, with_memory=False)
        self.job, self.trainer = job, trainer
        self.differences: dict[str, float] | None = None
        self.steps: list[dict[str, Seconds]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        super().on_step_end(args, state, control)
        self._check_lengths()
        clock = self.step.clock
        if state.global_step == 1:
            self._check()
        if state.global_step > WARM_UP:
            self.steps.append(dict(clock.seconds))
        else:
            clock.peaks.clear()
            self.step.meter.reserved = 0.0
        clock.seconds.clear()

    def _check_lengths(self) -> None:
        lengths = {len(ids) for ids in self.step.completions}
        if lengths != {self.job.completion_tokens} or len(self.step.completions) != self.job.total:
            raise Unequal(
                f"rollout: {len(self.step.completions)} completions of {min(lengths)} to {max(lengths)} tokens, where "
                f"all sides are to write {self.job.total} of {self.job.completion_tokens}"
            )
        self.step.completions.clear()

    def _check(self) -> None:
        answers = self.step.answers
        answers.loss, answers.precision = self.step.loss, _precision(self.trainer)
        answers.gradients = {name: gradient.cpu() for name, gradient in self.step.gradients.items()}
        self.step.gradients = {}
        if self.job.is_reference:
            torch.save(vars(answers), self.job.answers)
        else:
            reference = Answers(**torch.load(self.job.answers))
            self.differences = reference.compare(answers, self.job.tolerance)

    def times(self) -> dict[str, Any]:
        """Medians over the steps of each phase and of the parts that they make up."""
        zero = Seconds(0.0, 0.0)
        of_all = {**{phase: (phase,) for phase in PHASES}, **PARTS}
        medians = {
            name: median([_total(step.get(phase, zero) for phase in phases) for step in self.steps])
            for name, phases in of_all.items()
        }
        totals = [_total(step.values()) for step in self.steps]
        return {
            "seconds": {name: one.cost for name, one in medians.items()},
            "wall_seconds": {name: one.wall for name, one in medians.items()},
            "steps": [one.cost for one in totals],
            "wall_steps": [one.wall for one in totals],
        }

    def memory(self, ballast: int) -> dict[str, float | None]:
        """MiB: of each part above the loaded model; and of the process, without what only makes the card smaller."""
        clock, meter = self.step.clock, self.step.meter
        above = {part: max(clock.peaks[phase] for phase in phases) for part, phases in PARTS.items()}
        loaded = (meter.base - ballast) / MIB
        reserved = meter.reserved - ballast / MIB if meter.reserved else None
        return {**above, "loaded": loaded, "peak": loaded + above["step"], "reserved": reserved}


def _total(seconds: Any) -> Seconds:
    total = Seconds(0.0, 0.0)
    for one in seconds:
        total = total.plus(one)
    return total


def _estimate(job: Job, backend: Any) -> dict[str, float]:
    """MiB that `memory` expects, of what `memory()` measures: of the process, and of two parts above the loaded model.

    It knows our pass and our rollout; of the others it knows that they hold each prompt once for each completion.
    """
    recipe, config, side = backend.recipe, backend.model.config, SIDES[job.side]
    sizes, itemsize = model_sizes(config, recipe), backend.model.dtype.itemsize
    prompts = -(-job.rows // job.group) if side.shared else job.rows
    lengths = (prompts, job.prompt_tokens, job.rows, job.completion_tokens)
    update = pass_bytes(config.get_text_config(), *lengths, itemsize=itemsize, checkpointing=True)
    rollout = rollout_bytes(
        config, recipe, job.prompt_tokens, itemsize, shared=side.shares_rollout, text_tokens=0
    )  # of a prompt that is all image: the tower's part is small, and a few words are few
    held = weight_bytes(sizes, recipe, itemsize) + adapter_bytes(sizes, recipe)
    expected = {"peak": held + max(update, rollout), "policy_pass": update, "rollout": rollout}
    return {name: size / MIB for name, size in expected.items()}
