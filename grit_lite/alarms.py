"""What a person is told of a run while it trains, because its numbers say that it goes wrong.

An alarm is shown the metrics of every step; it answers with advice, or with nothing.
"""

from typing import Any


class DeadSignalAlarm:
    """Says, once each time it happens, that the rewards have stopped telling completions apart."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.dead_steps = 0

    def after(self, metrics: dict[str, Any]) -> str | None:
        self.dead_steps = self.dead_steps + 1 if metrics["groups_that_teach"] == 0 else 0
        if self.dead_steps != self.patience:
            return None
        level = "zero" if not metrics["reward"] else f"{metrics['reward']:.2f}"
        return (
            f"No group has varied for {self.patience} steps (mean reward {level}), so nothing is being learned. "
            "Look at samples.jsonl. If every reward is low, raise temperature or group_size, or begin with easier "
            "triplets; if every reward is high, training is finished."
        )


class SamplerGapAlarm:
    """Says, once, that the sampler draws from another distribution than the one that is trained.

    Bfloat16 alone makes vLLM and a trainer differ by 0.03 to 0.05 nats a token (root mean square; huggingface/trl
    issue 6789, ServiceNow/Fast-LLM pull request 525; 0.01 in the mean on the embedded model). Twice that is not
    rounding: other weights, or an old adapter.
    """

    threshold = 0.1  # nats

    def __init__(self) -> None:
        self.has_spoken = False

    def after(self, metrics: dict[str, Any]) -> str | None:
        gap = metrics["sampler_gap"]
        if gap is None or gap <= self.threshold or self.has_spoken:
            return None
        self.has_spoken = True
        return (
            f"vLLM draws tokens with log-probabilities {gap:.2f} nats away from the trainer's, where rounding explains "
            f"no more than {self.threshold}. Completions that this makes unlikely ones are left out of the loss. If it "
            "goes on, set vllm=off."
        )
