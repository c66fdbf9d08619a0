"""The way of a prompt through a vision-language model: its tokens, its images, its positions.

What differs between model families on this way is here and nowhere else, so that the shared-prompt pass and the rollout
can be written once for all of them. The language model is called directly, with embeddings in which the image features
are already in place: the images of a prompt are then seen once, however many passes and completions follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from grit_lite.compat import ensure_torchvision_ops
from grit_lite.families import FAMILIES

ensure_torchvision_ops()

from transformers import AttentionInterface, AttentionMaskInterface  # noqa: E402
from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402
from transformers.masking_utils import sdpa_mask  # noqa: E402

ATTENTION = "shared_prompt"


class Layout(Protocol):
    """Who sees whom in one call of the language model, when that is not simply everyone before."""

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """The attention of one layer: query (B, H, T, D), key and value (B, H', T, D) -> (B, T, H, D)."""
        ...


def shared_prompt_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' sdpa, except where a call of the language model brings a layout with it."""
    layout: Layout | None = options.pop("layout", None)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return layout.attend(module, query, key, value, options["scaling"]), None


AttentionInterface.register(ATTENTION, shared_prompt_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@dataclass(eq=False)
class Prompt:
    """One rendered prompt with its images.

    Attributes:
        tokens: (P,) token ids; the last one is text.
        positions: (A, P) rotary positions; A is 3 for M-RoPE (time, height, width), else 1.
        pixels: what the vision tower reads, by the processor's names; empty where there is no image, and once the
            features of a frozen tower are known.
        features: the image features, once known: (image tokens, hidden), then one such tensor for each deepstack layer.
    """

    tokens: Tensor
    positions: Tensor
    pixels: dict[str, Tensor] = field(default_factory=dict)
    features: list[Tensor] | None = None


class VisionLanguageModel:
    """The parts of a model of a known family, found once, behind whatever adapter is on it by then.

    Raises:
        ValueError: the family is not known; ask `shares_prompts` first.
    """

    def __init__(self, model: Any) -> None:
        base = base_model(model)
        if not shares_prompts(model):
            raise ValueError(f"cannot share prompts of a model of the class '{base.config.model_type}'")
        self.backbone = base.model
        self.language = base.model.language_model
        self.embed = base.get_input_embeddings()
        self.head = base.get_output_embeddings()
        self.image_token: int = base.config.image_token_id
        # Asked once, because an adapter that is switched off for the reference pass looks frozen.
        towers = (tower for name, tower in self.backbone.named_children() if name != "language_model")
        self.vision_is_frozen = not any(weight.requires_grad for tower in towers for weight in tower.parameters())
        base.config.get_text_config()._attn_implementation = ATTENTION

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def prompts(self, tokens: Sequence[Sequence[int]], images: Sequence[int], fields: dict[str, Any]) -> list[Prompt]:
        """A processor's batch, cut into prompts.

        Args:
            tokens: the ids of each prompt, without padding.
            images: how many images each prompt holds.
            fields: what the processor returned beside the ids, for all prompts together.
        """
        if any(len(ids) < 2 for ids in tokens):
            raise ValueError("a prompt has at least two tokens: its completions begin from the last one")
        rows = [torch.tensor(ids, device=self.device) for ids in tokens]
        pixels = self._split_pixels(rows, images, fields) if "pixel_values" in fields else [{} for _ in rows]
        return [Prompt(row, self._positions(row, own), own) for row, own in zip(rows, pixels, strict=True)]

    def fields(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """What a processor would have returned beside the ids of these prompts, for the library's own `generate`."""
        fields: dict[str, Any] = {
            name: torch.cat([prompt.pixels[name] for prompt in prompts if prompt.pixels])
            for name in next((prompt.pixels for prompt in prompts if prompt.pixels), {})
        }
        if hasattr(self.backbone, "get_rope_index"):
            fields["mm_token_type_ids"] = [(prompt.tokens == self.image_token).int().tolist() for prompt in prompts]
        return fields

    def _split_pixels(
        self, rows: Sequence[Tensor], images: Sequence[int], fields: dict[str, Any]
    ) -> list[dict[str, Tensor]]:
        seen = [int((row == self.image_token).sum()) for row in rows]
        # Patches (Qwen) and tiles (InternVL) of an image are in a fixed proportion to its tokens.
        pixels = fields["pixel_values"]
        if isinstance(pixels, list):  # InternVL's tiles, where the processor was not asked for tensors
            pixels = torch.stack([torch.as_tensor(tile) for tile in pixels])
        pixels = pixels.to(self.device)
        parts = {"pixel_values": pixels.split([count * len(pixels) // sum(seen) for count in seen])}
        if "image_grid_thw" in fields:
            parts["image_grid_thw"] = fields["image_grid_thw"].to(self.device).split(list(images))
        return [{name: part[row] for name, part in parts.items()} if seen[row] else {} for row in range(len(rows))]

    def _positions(self, tokens: Tensor, pixels: dict[str, Tensor]) -> Tensor:
        steps = torch.arange(len(tokens), device=tokens.device)
        if not hasattr(self.backbone, "get_rope_index"):
            return steps[None]
        if not pixels:
            return steps.expand(3, -1)
        is_image = (tokens == self.image_token).int()[None]
        grid = pixels["image_grid_thw"]
        positions, _ = self.backbone.get_rope_index(tokens[None], mm_token_type_ids=is_image, image_grid_thw=grid)
        return positions[:, 0]

    def run(
        self, layout: Layout, prompts: Sequence[Prompt] = (), followers: Sequence[tuple[Prompt, Tensor]] = ()
    ) -> Tensor:
        """The language model on one row without padding: the prompts, then tokens that follow one of them.

        The last token of a prompt is left to its followers. Each of theirs begins with it, so that the hidden states of
        a follower are those that predict its completion, token by token.

        Args:
            layout: who sees whom in the row.
            prompts: those that stand in the row.
            followers: (prompt, (L,) tokens, the prompt's last one first); the prompt need not stand in the row.

        Returns:
            (sum of L, hidden): the last hidden states of the followers; of prompts alone, none.
        """
        tokens = torch.cat([prompt.tokens[:-1] for prompt in prompts] + [ids for _, ids in followers])
        positions = [prompt.positions[:, :-1] for prompt in prompts]
        positions += [prompt.positions[:, -1:] + torch.arange(len(ids), device=ids.device) for prompt, ids in followers]
        embeddings, deepstack = self._with_images(tokens, prompts)
        states = self.forward(embeddings[None], torch.cat(positions, dim=1)[:, None], layout, **deepstack)[0]
        return states[sum(len(prompt.tokens) - 1 for prompt in prompts) :]

    def forward(self, embeddings: Tensor, positions: Tensor, layout: Layout, **deepstack: Any) -> Tensor:
        """(B, T, hidden): embeddings (B, T, hidden) at positions (A, B, T) through the layers and the last norm."""
        return self.language(
            inputs_embeds=embeddings,
            position_ids=positions if len(positions) > 1 else positions[0],
            attention_mask=_NO_MASK,
            use_cache=False,
            layout=layout,
            **deepstack,
        ).last_hidden_state

    def _with_images(self, tokens: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, dict[str, Any]]:
        embeddings = self.embed(tokens)
        features = self._features([prompt for prompt in prompts if prompt.pixels or prompt.features])
        if not features:
            return embeddings, {}
        is_image = tokens == self.image_token
        is_image[sum(len(prompt.tokens) - 1 for prompt in prompts) :] = False  # a completion has words for images only
        pooled, *deepstack = features
        embeddings = embeddings.masked_scatter(is_image[:, None], pooled.to(embeddings.dtype))
        if not deepstack:
            return embeddings, {}
        return embeddings, {"visual_pos_masks": is_image[None], "deepstack_visual_embeds": deepstack}

    def _features(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """The features of all images of the prompts, one after the other; a frozen tower sees each image once."""
        if not self.vision_is_frozen:
            return self._see(prompts) if prompts else []
        if unseen := [prompt for prompt in prompts if prompt.features is None]:
            with torch.no_grad():
                features = self._see(unseen)
            counts = [int((prompt.tokens == self.image_token).sum()) for prompt in unseen]
            for prompt, *own in zip(unseen, *(level.split(counts) for level in features), strict=True):
                prompt.features, prompt.pixels = own, {}
        return [torch.cat(level) for level in zip(*(prompt.features or [] for prompt in prompts), strict=True)]

    def _see(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        pixels = {name: torch.cat([prompt.pixels[name] for prompt in prompts]) for name in prompts[0].pixels}
        output = self.backbone.get_image_features(**pixels)
        pooled = output.pooler_output  # one tensor for each image (Qwen), or for all tiles together (InternVL)
        pooled = torch.cat(pooled) if isinstance(pooled, (tuple, list)) else pooled.flatten(0, 1)
        return [pooled, *(getattr(output, "deepstack_features", None) or [])]


# A mask of four dimensions is handed on as it is; the layout decides, and nothing reads this one.
_NO_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)


def base_model(model: Any) -> Any:
    """The `…ForConditionalGeneration` itself, behind an adapter or a wrapper."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def shares_prompts(model: Any) -> bool:
    """Whether the model is of a family for which a shared prompt is known to be exact."""
    config = base_model(model).config
    layers = getattr(config.get_text_config(), "layer_types", None) or ["full_attention"]
    return config.model_type in FAMILIES and set(layers) == {"full_attention"}
