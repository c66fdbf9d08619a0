"""Runs whose adapter was taught, in seconds, to write full chains, as one in ten completions of the embedded model is.

Training with rewards does the same to it and takes minutes.
"""

import re
from pathlib import Path

import torch

from grit_lite.answer import has_valid_format, parse
from grit_lite.backends import Generated, Request, open_backend
from grit_lite.evaluate import shapes
from grit_lite.recipe import load_recipe

ROUNDS, LEARNING_RATE = 12, 2e-3
LESSONS = 4


class Writer:
    """A backend that is taught more and more; each state can be saved as a run folder."""

    recipe = load_recipe("tiny", ["max_completion_tokens=96"])

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.backend = open_backend(self.recipe)
        self.backend.attach_lora(self.recipe)
        self.lessons = self._chains()

    def save_run(self, folder: Path, answer: str | None = None) -> Path:
        """The folder as `grit-lite train` leaves it, as far as it is read; an adapter in it is replaced.

        Args:
            answer: what the chains are to end with; None is whatever the model itself concludes.
        """
        self._teach([(request, text if answer is None else ending(text, answer)) for request, text in self.lessons])
        folder.mkdir(exist_ok=True)
        (folder / "recipe.yaml").write_text(self.recipe.text())
        self.backend.save_adapter(folder / "adapter")
        return folder

    def _chains(self) -> list[tuple[Request, str]]:
        """Prompts and completions of full form, from the model itself."""
        render = self.backend.spec.prompts.render
        requests = [Request((row.load_image(),), render(row.question)) for row in shapes(24) for _ in range(4)]
        drawn = self.backend.generate(requests, max_new_tokens=96, temperature=1.0)
        full = [(request, one.text) for request, one in zip(requests, drawn, strict=True) if is_chain(one)]
        assert len(full) >= LESSONS, "the embedded model hardly writes chains any more"
        return full[:: len(full) // LESSONS][:LESSONS]

    def _teach(self, lessons: list[tuple[Request, str]]) -> None:
        parameters = [one for one in self.backend.model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(parameters, LEARNING_RATE)
        for batch in [self._lesson(*one) for one in lessons] * ROUNDS:
            optimizer.zero_grad()
            self.backend.model(**batch).loss.backward()
            optimizer.step()

    def _lesson(self, request: Request, text: str) -> dict:
        """The prompt with the text and the end token behind it; only these count."""
        batch = self.backend._encode([Request(request.images, request.text, opening=text)])
        asked = self.backend.prompt_tokens(request)
        added = {"input_ids": self.backend.end_tokens()[0], "attention_mask": 1, "mm_token_type_ids": 0}
        for name in batch.keys() & added.keys():
            batch[name] = torch.cat([batch[name], torch.tensor([[added[name]]])], dim=1)
        labels = batch["input_ids"].clone()
        labels[:, :asked] = -100
        return {**batch, "labels": labels}


def is_chain(completion: Generated) -> bool:
    answer = parse(completion.text)
    return completion.finished and has_valid_format(answer) and bool(answer.boxes)


def ending(text: str, answer: str) -> str:
    return re.sub(r"<answer>.*", f"<answer> {answer}", text)
