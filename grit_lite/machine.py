"""The GPU of this machine, and what follows from it: the number format of a model, and the recipe to begin with."""

from dataclasses import dataclass

from grit_lite.errors import ModelError


@dataclass(frozen=True)
class Gpu:
    """A CUDA device.

    Attributes:
        name: as its driver has it.
        gib: its memory.
        capability: CUDA compute capability, (major, minor).
    """

    name: str
    gib: float
    capability: tuple[int, int]

    @property
    def has_bfloat16(self) -> bool:
        """In hardware. PyTorch imitates it on older cards, more slowly than float32."""
        return self.capability >= (8, 0)


def find_gpu() -> Gpu | None:
    """The CUDA device that PyTorch would use; None where it finds none."""
    import torch

    if not torch.cuda.is_available():
        return None
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Gpu(facts.name, facts.total_memory / 2**30, (facts.major, facts.minor))


def number_format(asked: str, gpu: Gpu | None) -> str:
    """The dtype of a model's weights, by PyTorch's name, for what a recipe asks: a name, or "auto".

    Raises:
        ModelError: bfloat16 on a card without it.
    """
    if asked == "bfloat16" and gpu is not None and not gpu.has_bfloat16:
        raise ModelError(
            f"The recipe asks for dtype: bfloat16, which {gpu.name} does not have (compute capability "
            f"{gpu.capability[0]}.{gpu.capability[1]}; it came with 8.0). Set dtype=auto, which is float16 there."
        )
    if asked != "auto":
        return asked
    if gpu is None:
        return "float32"
    return "bfloat16" if gpu.has_bfloat16 else "float16"


# Recipes for a machine with a GPU, the better one first: (name, GiB that the card reports at the least, which is less
# than it is sold by; compute capability at the least, that of bfloat16 and that of Unsloth).
_RECIPES = (("qwen2_5-vl-3b", 11, (8, 0)), ("t4", 14, (7, 0)))


def default_recipe(gpu: Gpu | None) -> tuple[str, str]:
    """(recipe, why) for a machine on which no recipe was named."""
    if gpu is None:
        return "tiny", "PyTorch finds no CUDA device here"
    why = f"{gpu.name} has {gpu.gib:.0f} GiB and {'' if gpu.has_bfloat16 else 'no '}bfloat16"
    for name, gib, capability in _RECIPES:
        if gpu.gib >= gib and gpu.capability >= capability:
            return name, why
    wants = " or ".join(f"{gib} GiB and compute capability {c[0]}.{c[1]} ({name})" for name, gib, c in _RECIPES)
    return "tiny", f"{why}, and a larger model wants {wants}"
