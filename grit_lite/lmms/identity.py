"""What lmms-eval is told of a model: arguments that change whenever an answer could.

lmms-eval keeps responses under the model's name and its arguments as they were typed. A run folder that was trained
anew has the same name, so the arguments hold a hash as well, which is compared with the files before anything
is answered.
"""

import hashlib
from pathlib import Path

from grit_lite.backends import find_spec, model_location
from grit_lite.chat import Chosen, find_model
from grit_lite.errors import ModelError, UsageError
from grit_lite.evaluate import SYSTEMS
from grit_lite.evaluate.rows import scored_by
from grit_lite.evaluate.runner import sampled_by
from grit_lite.lmms import answering
from grit_lite.run import contents


def model_args(target: str, system: str | None = None, max_new_tokens: int | None = None) -> str:
    """The text behind lmms-eval's `--model_args` for a run folder, an adapter, a model's folder or a model's name.

    Raises:
        UsageError: the system does not exist or cannot be had, or the path has a character with a meaning there.
        ModelError: no such model.
    """
    where = str(Path(target).expanduser().resolve()) if Path(target).expanduser().is_dir() else target
    if set(where) & set(",=\"'{}[]"):
        raise UsageError(f"lmms-eval cannot read a path with commas, quotes or brackets in --model_args: {where}")
    chosen = find_model(where)
    name = "run" if (Path(where) / "recipe.yaml").is_file() else "model"
    limit = f",max_new_tokens={max_new_tokens}" if max_new_tokens else ""
    return f"{name}={where},system={choose_system(chosen, system)},weights={weights_name(chosen)}{limit}"


def choose_system(chosen: Chosen, system: str | None) -> str:
    """The system that was asked for, else the tuned one where there is an adapter, else the base.

    Raises:
        UsageError: there is no such system, or it needs an adapter and there is none.
    """
    system = {"direct": "base_direct"}.get(system or "", system)
    if system is None:
        return "tuned" if chosen.adapter else "base"
    if system not in SYSTEMS:
        raise UsageError(f"There is no system '{system}': write system=tuned, system=base or system=direct.")
    if system == "tuned" and chosen.adapter is None:
        raise UsageError(
            f"{chosen.name} has no adapter, so that there is no tuned system beside the base. A model that the adapter "
            "was merged into is asked under the GRIT prompt with system=base."
        )
    return system


def check_weights(chosen: Chosen, weights: str | None) -> None:
    """Refuse arguments that do not name the weights as they are now.

    Raises:
        UsageError: no weights are named, or they were others when they were.
    """
    now = weights_name(chosen)
    if weights == now:
        return
    wrong = "do not say which weights are meant" if weights is None else f"name weights={weights}, which are not these"
    raise UsageError(
        f"The --model_args {wrong}. lmms-eval knows the responses in its cache by these arguments alone, and would "
        f'serve those of other weights. Let grit-lite write them: --model_args "$(grit-lite lmms args {chosen.name})", '
        f"or add weights={now}."
    )


def weights_name(chosen: Chosen) -> str:
    """ "w" and 16 hexadecimal digits of everything that answers depend on but the question and the machine.

    The letter is there because lmms-eval reads arguments like 12345678 and 1e5 as numbers.
    """
    recipe = chosen.recipe
    digest = hashlib.sha256(_code().encode())
    settings = (recipe.dtype, recipe.load_in_4bit, recipe.max_pixels, recipe.max_completion_tokens)
    digest.update(repr(settings).encode())
    digest.update(repr(find_spec(recipe, chosen.adapter)).encode())
    digest.update(_contents_or_commit(model_location(recipe.model), recipe.revision))
    if chosen.adapter:
        digest.update(contents(chosen.adapter).encode())
    return f"w{digest.hexdigest()[:16]}"


def _code() -> str:
    """The hashes of the code that a completion is made by, and that makes the answer of it which is handed over.

    Not the version of the package, which stays the same while somebody works on that code.
    """
    return f"{sampled_by()} {scored_by()} {hashlib.sha256(Path(answering.__file__).read_bytes()).hexdigest()}"


def _contents_or_commit(location: str, revision: str | None) -> bytes:
    """The hash of a folder; of a name on the hub, the commit that it stands for."""
    if Path(location).is_dir():
        return contents(Path(location)).encode()
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(location, "config.json", revision=revision)).parent.name.encode()
    except OSError as error:
        raise ModelError(f"Which version of {location} is meant cannot be found out: {error}") from error
