"""A sampler that is not the trainer, where there is no vLLM to be one."""

import contextlib

import torch

from grit_lite.engine import Sampled
from grit_lite.packing import PACKED
from grit_lite.rollout import sample
from grit_lite.vlm import VisionLanguageModel


class Elsewhere:
    """In the place of a vLLM engine: the rollout, with log-probabilities that are off by `offset` nats a token."""

    def __init__(self, model, processor, offset=0.0):
        self.vlm, self.processor, self.offset = VisionLanguageModel(model), processor, offset
        self.shared = False
        self.asked = []

    def sample(self, prompts, sampling, number):
        self.asked.append((len(prompts), number, sampling))
        images = [image for prompt in prompts for image in prompt.images]
        fields = self.processor.image_processor(images=images, return_tensors="pt")
        counts = [len(prompt.images) for prompt in prompts]
        built = self.vlm.prompts([prompt.tokens for prompt in prompts], counts, fields)
        tokens = sample(self.vlm, built, [place for place in range(len(built)) for _ in range(number)], sampling)
        groups = [tokens[start : start + number] for start in range(0, len(tokens), number)]
        return [self._with_logps(prompt, own, sampling) for prompt, own in zip(built, groups, strict=True)]

    @torch.no_grad()
    def _with_logps(self, prompt, completions, sampling):
        rows = [torch.tensor(ids) for ids in completions]
        logps, _ = PACKED.score(self.vlm, [(prompt, rows)], sampling.temperature, contextlib.nullcontext)
        parts = (logps + self.offset).split([len(row) for row in rows])
        return [Sampled(ids, part.tolist()) for ids, part in zip(completions, parts, strict=True)]
