"""Everything that is measured under Unsloth, in a process of its own: `worker.py MODEL OUT off|unsloth float32|nf4`.

OUT becomes a folder with `adapter`, the LoRA adapter in PEFT's format, and `results.pt`, what was measured.
"""

import sys
from pathlib import Path
from typing import Any, ClassVar

import arrangement  # before all others: it has Unsloth rewrite transformers and trl before anything imports them
import torch
from scenario import BETAS, build_trainer, completions_for, functions_run, measure, repeated_rows, scripted, trained

from grit_lite.packing import PACKED, Schedule
from grit_lite.rollout import cut_at_end
from grit_lite.sharing import share_prompts

SCHEDULES = {"packed": PACKED, "rows": Schedule(at_once=3), "staged": Schedule(staged=True, at_once=3)}


def main(model_folder: str, out: str, checkpointing: str, precision: str) -> None:
    torch.set_num_threads(1)
    folder = Path(out)
    mode = "unsloth" if checkpointing == "unsloth" else False
    model, processor = arrangement.open_model(Path(model_folder), mode, load_in_4bit=precision == "nf4")
    draw_adapter(model)
    model.save_pretrained(folder / "adapter")
    build = Builder(model, processor, folder)
    results: dict[str, Any] = {}
    # Unsloth's own first, while nothing of ours has touched the model.
    results["stock"] = {beta: measure(build(build.scripted(build.base), beta)) for beta in BETAS}
    results |= {name: measure_shared(build, schedule) for name, schedule in SCHEDULES.items()}
    results["step"] = train(build)
    results["greedy"] = greedy(build)
    torch.save(results, folder / "results.pt")


class Builder:
    """Builds trainers on the one model of this process."""

    def __init__(self, model: Any, processor: Any, folder: Path) -> None:
        self.model, self.processor, self.folder = model, processor, folder
        self.config_type, self.base = arrangement.trainer_types()

    def __call__(self, trainer_type: type, beta: float, **options: Any) -> Any:
        return build_trainer(self.config_type, trainer_type, self.model, self.processor, self.folder, beta, **options)

    def scripted(self, base: type) -> type:
        return scripted(base, completions_for(self.processor))


@torch.no_grad()
def draw_adapter(model: Any) -> None:
    """B of a fresh adapter is zero, and then nothing that reads A has a gradient. With a larger deviation a token's KL
    reaches 10, where Unsloth cuts it off."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(trained(model).items()):
        if "lora_B" in name:
            parameter.normal_(std=0.04, generator=generator)


def measure_shared(build: Builder, schedule: Schedule) -> dict[float, Any]:
    """By beta, what was measured, or what was raised."""
    trainer_type = build.scripted(share_prompts(build.base))
    measured: dict[float, Any] = {}
    for beta in BETAS:
        try:
            measured[beta] = measure(build(trainer_type, beta, schedule=schedule))
        except RuntimeError as error:
            measured[beta] = str(error)
    return measured


def train(build: Builder) -> dict[str, Any]:
    """One step of training as a user starts it: rollout, micro-batches, optimizer."""

    class Recorded(share_prompts(build.base)):
        micro_batches: ClassVar[list[list[int]]] = []

        def compute_loss(self, model: Any, inputs: dict[str, Any], *options: Any, **more: Any) -> Any:
            self.micro_batches.append(inputs["pixel_values"][:, 0].tolist())
            return super().compute_loss(model, inputs, *options, **more)

    before = {name: parameter.detach().clone() for name, parameter in trained(build.model).items()}
    trainer = build(Recorded, 0.04)
    functions = functions_run(trainer.train)
    changed = {name: not torch.equal(parameter, before[name]) for name, parameter in trained(build.model).items()}
    return {"functions": functions, "micro_batches": trainer.micro_batches, "changed": changed}


def greedy(build: Builder) -> dict[str, list[list[int]]]:
    """The completions of our rollout, and those of the `generate` that Unsloth put away."""
    trainer = build(share_prompts(build.base), 0.0)
    trainer.temperature = 0.0
    ends = tuple(trainer.eos_token_ids)
    batch = trainer._generate_and_score_completions(repeated_rows())
    rows = zip(batch["completion_ids"], batch["completion_mask"].bool(), strict=True)
    ours = [ids[mask].tolist() for ids, mask in rows]
    options = trainer._sampling().for_generate()
    language_model = build.model.get_base_model().eval()
    theirs = []
    for row in repeated_rows():
        encoded = encode(build.processor, row)
        with torch.no_grad():
            tokens = language_model._old_generate(**encoded, **options)
        theirs += cut_at_end(tokens[:, encoded["input_ids"].shape[1] :], ends)
    return {"ours": ours, "theirs": theirs}


def encode(processor: Any, row: dict[str, Any]) -> Any:
    from trl.data_utils import prepare_multimodal_messages

    messages = prepare_multimodal_messages(row["prompt"], images=row["images"])
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return processor(text=[text], images=[row["images"]], return_tensors="pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
