"""The model `grit_lite` of lmms-eval."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from grit_lite import processes
from grit_lite.backends import open_backend
from grit_lite.chat import Chosen, find_model
from grit_lite.errors import ModelError, UsageError
from grit_lite.lmms.answering import Answering, Asked, missing, not_followed, read_messages
from grit_lite.lmms.identity import check_weights, choose_system

try:
    from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts  # pyright: ignore[reportMissingImports]
    from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
    from loguru import logger  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ModelError(f"lmms-eval cannot be imported here ({error}): pip install 'grit-lite[lmms]'") from error

BATCH_SIZE = 32


class GritLite(lmms):
    """A run, an adapter or a model as lmms-eval's chat models are; greedy, and in one process.

    It has the plain backend: lmms-eval has imported transformers by now, and Unsloth would have to come before.

    Args:
        run, model: a run folder; or an adapter's folder, a model's folder or a model's name. One of the two.
        weights: what `grit-lite lmms args` calls them; see `identity`.
        system: "tuned", "base", or "direct" for the base without the GRIT prompt.
        max_new_tokens: of a completion, its reasoning included; the recipe's limit where none is given.
        completions: the file for full completions; by default in `lmms/`, of the run folder if there is one.
        batch_size: lmms-eval's `--batch_size`; "auto" begins with 32.
        max_batch_size, device: given by lmms-eval; the batch size finds itself, and the device is PyTorch's.

    Raises:
        UsageError: the arguments name no model, or other weights than those that are there.
        ModelError: the model cannot be had.
    """

    is_simple = False

    def __init__(
        self,
        run: Any = None,
        model: Any = None,
        weights: str | None = None,
        system: str | None = None,
        max_new_tokens: int | None = None,
        completions: str | None = None,
        batch_size: int | str = BATCH_SIZE,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        _refuse_several_processes()
        chosen = _choose(run, model)
        check_weights(chosen, weights)
        system = choose_system(chosen, system)
        file = Path(completions) if completions else _new_file(chosen, f"{system}-{weights}")
        # A server of the recipe served the training; Unsloth would have to be imported before transformers.
        recipe = chosen.recipe.model_copy(update={"backend": "plain", "vllm_server": None})
        limit = int(max_new_tokens or recipe.max_completion_tokens)
        size = int(batch_size) if str(batch_size).isdigit() else BATCH_SIZE
        self._answering: Answering | None = Answering(open_backend(recipe, chosen.adapter), system, limit, size, file)
        self._said: set[str] = set()

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """The extracted answer of each request, empty where a completion has none."""
        assert self._answering is not None, "lmms-eval asks nothing after clean()"
        self._say_once(not_followed([request.args[2] for request in requests], self._answering.max_new_tokens))
        rows = [row for batch in self._batches(requests) for row in self._answering(batch)]
        if said := missing(rows, self._answering.completions):
            logger.warning(said)
        return [GenerationResult(row["answer"] or "", TokenCounts(output_tokens=row["tokens"])) for row in rows]

    def loglikelihood(self, requests: Sequence[Instance]) -> Any:
        raise _unanswerable(requests, "likelihoods of given answers; grit_lite reasons first and then writes one")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> Any:
        raise _unanswerable(requests, "several rounds; grit_lite is trained for one question at a time")

    def clean(self) -> None:
        """Free the memory: lmms-eval calls this when all questions were asked, before it starts a judge."""
        self._answering = None
        super().clean()

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[Asked]]:
        """Images are read for a batch at a time."""
        size = self._answering.batch_size if self._answering else BATCH_SIZE
        for start in range(0, len(requests), size):
            yield [self._read(request) for request in requests[start : start + size]]

    def _read(self, request: Instance) -> Asked:
        _, doc_to_messages, _, document, task, split = request.args
        return read_messages(task, document, doc_to_messages(self.task_dict[task][split][document]))

    def _say_once(self, texts: Sequence[str]) -> None:
        for text in texts:
            if text not in self._said:
                logger.warning(text)
            self._said.add(text)


def _refuse_several_processes() -> None:
    if processes.count() > 1:
        raise UsageError("The model grit_lite runs in one process. Start lmms-eval with python, without a launcher.")


def _choose(run: Any, model: Any) -> Chosen:
    """lmms-eval reads a name of digits as a number."""
    if (run is None) == (model is None):
        raise UsageError('Name one model, with either run= or model=: --model_args "$(grit-lite lmms args RUN)".')
    return find_model(str(run if model is None else model))


def _new_file(chosen: Chosen, name: str) -> Path:
    is_run = chosen.adapter is not None and (Path(chosen.name) / "recipe.yaml").is_file()
    return Path(chosen.name if is_run else ".") / "lmms" / f"{name}-{datetime.now():%Y%m%d-%H%M%S}.jsonl"


def _unanswerable(requests: Sequence[Instance], why: str) -> UsageError:
    tasks = ", ".join(sorted({request.task_name for request in requests}))
    return UsageError(f"{tasks} asks for {why}. Choose tasks of the output type generate_until.")
