"""A step that did not fit into memory, tried again: what the next try does differently, or why there is none.

`fitting` says which part of a step can be made smaller; here it is put in force in a run, and told.
"""

from typing import TYPE_CHECKING

from grit_lite.backends import Backend, can_stage
from grit_lite.errors import OutOfMemory
from grit_lite.fitting import Changes, Failure, smaller_parts
from grit_lite.recipe import Recipe
from grit_lite.run import Run

if TYPE_CHECKING:
    from grit_lite.memory import Plan

RETRIES = 3  # of one step


class Retries:
    """At most three of one step, each in smaller parts of the same update than the one before it."""

    def __init__(self, run: Run, backend: Backend, plan: "Plan | None") -> None:
        self.run, self.backend, self.plan = run, backend, plan
        self.step = self.count = 0

    def after(self, failure: Failure) -> str:
        """What the next try does differently, now in force and in run.json.

        Raises:
            OutOfMemory: there is no smaller part, or the step has had its retries.
        """
        self.count = self.count + 1 if failure.step == self.step else 1
        self.step = failure.step
        recipe = self.run.recipe_in_force
        changes = self._smaller_parts(recipe, failure)
        if changes is None or self.count > RETRIES:
            raise OutOfMemory(self._explain(failure, recipe))
        smaller = ", ".join(f"{key} {getattr(recipe, key) or 'all'} → {value}" for key, value in changes.items())
        what = f"step {failure.step}: the {failure.phase} did not fit into memory; {smaller}, for the same update"
        self.run.make_smaller(changes, f"{what} ({failure.said})")
        return what

    def _smaller_parts(self, recipe: Recipe, failure: Failure) -> Changes | None:
        from grit_lite.vlm import shares_prompts  # only now: what it imports, Unsloth has to rewrite first

        shares = recipe.prompt_sharing != "none" and shares_prompts(self.backend.model)
        own_rollout = shares and self.backend.shares_rollout and self.backend.engine is None
        return smaller_parts(
            recipe,
            failure,
            shares=shares,
            stages=can_stage(self.backend.name, recipe),
            own_rollout=own_rollout and recipe.vllm_server is None,
        )

    def _explain(self, failure: Failure, recipe: Recipe) -> str:
        tries = f" after {self.count - 1} retries in smaller parts" if self.count > 1 else ""
        checkpoint = self.run.latest_checkpoint()
        kept = f"Step {checkpoint[0]} is kept. " if checkpoint else ""
        return (
            f"Step {failure.step}: the {failure.phase} did not fit into memory{tries}: {failure.said}\n"
            f"{self._advice(recipe)}\n{kept}Where there is more memory, or once other programs have left it, go on "
            f"with: grit-lite train --resume --output {self.run.folder}"
        )

    def _advice(self, recipe: Recipe) -> str:
        if self.plan is None:
            return "Start again with a lower max_completion_tokens or max_pixels, or with a smaller model."
        return self.plan.advice(recipe, after_failure=True)
