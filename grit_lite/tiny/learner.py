"""What pre-training optimises: the batched vision pass, the throw-away heads, the losses, the optimizers.

The vision pass computes with the model's own weights what Qwen3-VL computes picture by picture; all pictures here have
one size, so they go through in one batch. The heads teach the vision tower what is where; they are thrown away.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grit_lite.tiny.build import HIDDEN, MERGE, PATCH
from grit_lite.tiny.rows import IMAGE_TOKENS, Batch
from grit_lite.tiny.world import COLORS, SHAPES, SIDE, Scene

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

PATCHES = SIDE // PATCH  # a side
_LEAST_COVER = 0.2  # of a patch's pixels that an object must fill to be what the patch shows
_SHAPE, _COLOR = len(SHAPES) + 1, len(COLORS) + 1  # class 0 is background
_HEAD = _SHAPE + _COLOR + 4 + 1  # shape, colour, box, is-the-middle
_BLUR = 1.2  # pixels: deviation of the soft labels on coordinates
COORDINATES = SIDE + 1  # 0 to 112


def quick_dtype(device: str) -> torch.dtype:
    """bfloat16 where matrices are multiplied in it, else float32: emulating it takes thirty times as long."""
    is_quick = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if is_quick else torch.float32


def mixed_precision(device: str) -> torch.autocast:
    """Within the block matrices are multiplied in `quick_dtype`; weights stay in float32."""
    return torch.autocast(device, torch.bfloat16, enabled=quick_dtype(device) is torch.bfloat16)


def to_patches(pictures: np.ndarray) -> np.ndarray:
    """(B, 112, 112, 3) uint8 as (B, 196, 192) float32 in the processor's order: a token's 2 x 2 patches together."""
    values = pictures.astype(np.float32) / 255 * 2 - 1
    count, half = len(values), PATCHES // MERGE
    split = values.transpose(0, 3, 1, 2).reshape(count, 3, half, MERGE, PATCH, half, MERGE, PATCH)
    return split.transpose(0, 2, 5, 3, 6, 1, 4, 7).reshape(count, PATCHES**2, 3 * PATCH**2)


def patch_targets(scene: Scene) -> dict[str, np.ndarray]:
    """What every patch shows, in the processor's order: shape and colour class (196,), box (196, 4) in 0..1, middle."""
    shape, color = np.zeros((2, PATCHES, PATCHES), np.int64)
    box, is_middle = np.zeros((PATCHES, PATCHES, 4), np.float32), np.zeros((PATCHES, PATCHES), np.float32)
    best = np.full((PATCHES, PATCHES), _LEAST_COVER)
    for k, thing in enumerate(scene.objects, start=1):
        cover = (scene.mask == k).reshape(PATCHES, PATCH, PATCHES, PATCH).mean((1, 3))
        won = cover > best
        best = np.maximum(best, cover)
        shape[won], color[won] = SHAPES.index(thing.shape) + 1, list(COLORS).index(thing.color) + 1
        box[won] = np.array(thing.box) / SIDE
        x1, y1, x2, y2 = thing.box
        is_middle[int((y1 + y2) / 2 / PATCH), int((x1 + x2) / 2 / PATCH)] = 1
    named = {"shape": shape, "color": color, "box": box, "middle": is_middle}
    return {name: _processor_order(grid) for name, grid in named.items()}


def _processor_order(grid: np.ndarray) -> np.ndarray:
    half = PATCHES // MERGE
    tiled = grid.reshape(half, MERGE, half, MERGE, *grid.shape[2:]).swapaxes(1, 2)
    return tiled.reshape(PATCHES**2, *grid.shape[2:])


class BatchedVision:
    """The model's vision tower for a batch of equal pictures; holds no weights of its own."""

    def __init__(self, model: "Qwen3VLForConditionalGeneration") -> None:
        self.tower: Any = model.model.visual
        row, column = np.mgrid[0:PATCHES, 0:PATCHES]
        order = torch.from_numpy(np.stack([_processor_order(row), _processor_order(column)]))  # (2, 196)
        device = next(self.tower.parameters()).device
        self.place = (order[0] * PATCHES + order[1]).to(device)
        cos, sin = self.tower.rotary_pos_emb(torch.zeros(1), order.T.to(device))
        self.cos, self.sin = cos[None, None], sin[None, None]

    def __call__(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 196, 192) -> patch features (B, 196, 128) and image tokens (B, 49, 192)."""
        tower, (count, size, _) = self.tower, patches.shape
        projection = tower.patch_embed.proj
        hidden = F.linear(patches, projection.weight.flatten(1), projection.bias) + tower.pos_embed(self.place)
        for block in tower.blocks:
            hidden = hidden + self._attend(block.attn, block.norm1(hidden))
            hidden = hidden + block.mlp(block.norm2(hidden))
        merger = tower.merger
        merged = merger.norm(hidden).view(count, size // MERGE**2, -1)
        return hidden, merger.linear_fc2(merger.act_fn(merger.linear_fc1(merged)))

    def _attend(self, attention: Any, hidden: Tensor) -> Tensor:
        count, size, width = hidden.shape
        query, key, value = attention.qkv(hidden).view(count, size, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key = _turned(query, self.cos, self.sin), _turned(key, self.cos, self.sin)
        attended = _scaled(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), None)
        return attention.proj(attended.reshape(count, size, width))


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the last axis, first half against second half, as in Qwen3-VL."""
    first, second = states.chunk(2, dim=-1)
    return (states * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)


class Heads(nn.Module):
    """Throw-away heads: what each patch shows, read from the patch features and again from the image tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", vision_width: int = 128) -> None:
        super().__init__()
        self.patch_norm, self.patch = nn.LayerNorm(vision_width), nn.Linear(vision_width, _HEAD)
        self.token_norm, self.token = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, MERGE**2 * _HEAD)
        self.corners = nn.Linear(HIDDEN, 4 * HIDDEN)
        token = tokenizer.get_vocab()
        for name, words in (("shape_words", SHAPES), ("color_words", COLORS)):
            both = torch.tensor([[token[f"Ġ{word}"] for word in words], [token[word] for word in words]])
            self.register_buffer(name, both, persistent=False)  # (with and without a space before it, words)
        numbers = torch.tensor([token[str(number)] for number in range(COORDINATES)])
        self.register_buffer("numbers", numbers, persistent=False)

    def forward(
        self, features: Tensor, tokens: Tensor, targets: dict[str, Tensor], embeddings: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """The sum of the losses, and how often the image tokens name the right shape, colour and box (pixels off)."""
        by_patch, _ = self._patch_loss(self.patch(self.patch_norm(features)), targets)
        written = self.token(self.token_norm(tokens)).view(*features.shape[:2], _HEAD)
        by_token, quality = self._patch_loss(written, targets)
        named = self._naming_loss(tokens, targets, embeddings)
        return 0.5 * by_patch + by_token + named + self._corner_loss(tokens, targets, embeddings), quality

    def _patch_loss(self, out: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        shape, color, box, middle = out.float().split([_SHAPE, _COLOR, 4, 1], dim=-1)
        shown = targets["shape"] > 0
        weight = torch.where(shown, 1.0, 0.35)

        def classes(logits: Tensor, target: Tensor) -> Tensor:
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
            return (loss * weight.flatten()).sum() / weight.sum()

        loss = 2 * classes(shape, targets["shape"]) + classes(color, targets["color"])
        loss = loss + 8 * F.smooth_l1_loss(box[shown], targets["box"][shown], beta=0.02)
        often = torch.tensor(5.0, device=out.device)  # one patch an object is its middle
        loss = loss + F.binary_cross_entropy_with_logits(middle[..., 0], targets["middle"], pos_weight=often)
        with torch.no_grad():
            right = {
                name: (logits.argmax(-1) == targets[name])[shown].float().mean().item()
                for name, logits in (("shape", shape), ("color", color))
            }
            right["pixels_off"] = (box[shown] - targets["box"][shown]).abs().mean().item() * SIDE
        return loss, right

    def _naming_loss(self, tokens: Tensor, targets: dict[str, Tensor], embeddings: Tensor) -> Tensor:
        """An image token has to point at the words of what it shows, in the language model's own embeddings."""
        direction = _rms_normed(tokens)
        loss = tokens.new_zeros(())
        for name in ("shape", "color"):
            words = self.get_buffer(f"{name}_words")
            target = F.one_hot(targets[name], words.shape[1] + 1)[..., 1:].float()
            target = target.view(len(tokens), IMAGE_TOKENS, MERGE**2, -1).sum(2)
            shown = target.sum(-1) > 0
            target = target[shown] / target[shown].sum(-1, keepdim=True)
            for row in words:
                logits = (direction[shown] @ embeddings[row].T).float()
                loss = loss - (target * F.log_softmax(logits, -1)).sum(-1).mean()
        return loss

    def _corner_loss(self, tokens: Tensor, targets: dict[str, Tensor], embeddings: Tensor) -> Tensor:
        """An image token has to know, up to a linear map, the number tokens of the box it shows."""
        shown = targets["shape"].view(len(tokens), IMAGE_TOKENS, MERGE**2) > 0
        first = shown.float().argmax(-1, keepdim=True)  # one object a token: that of its first shown patch
        boxes = targets["box"].view(len(tokens), IMAGE_TOKENS, MERGE**2, 4)
        boxes = boxes.gather(2, first[..., None].expand(-1, -1, -1, 4))[:, :, 0][shown.any(-1)]  # (N, 4)
        read = _rms_normed(self.corners(tokens[shown.any(-1)]).view(-1, 4, HIDDEN))
        logits = (read @ embeddings[self.get_buffer("numbers")].T).float()
        return 0.5 * soft_number_loss(logits, (boxes * SIDE).round().long()).mean()


def _rms_normed(states: Tensor) -> Tensor:
    states = states.float()
    return states * (states.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()


def soft_number_loss(logits: Tensor, numbers: Tensor) -> Tensor:
    """Cross-entropy against a bell of 1.2 pixels around the number: being off by one costs little."""
    distance = torch.arange(logits.shape[-1], device=logits.device) - numbers[..., None]
    target = torch.softmax(-(distance.float() ** 2) / (2 * _BLUR**2), -1)
    return -(target * F.log_softmax(logits, -1)).sum(-1)


@dataclass
class Packed:
    """rows.Batch as tensors."""

    ids: Tensor
    positions: Tensor
    labels: Tensor
    weights: Tensor
    coordinates: Tensor
    prefix: Tensor
    blocks: list[dict[str, Tensor]]

    @classmethod
    def on(cls, device: str, batch: Batch) -> "Packed":
        blocks = [{name: torch.from_numpy(array).to(device) for name, array in vars(b).items()} for b in batch.blocks]
        flat = {name: array for name, array in vars(batch).items() if name != "blocks"}
        return cls(**{name: torch.from_numpy(array).to(device) for name, array in flat.items()}, blocks=blocks)


def hidden_states(model: "Qwen3VLForConditionalGeneration", batch: Packed, image_tokens: Tensor | None) -> Tensor:
    """(N, 192): the language model over flat rows, each block seeing its own row's prefix and itself.

    `image_tokens` (B, 49, 192) take the place of the image placeholders; None for rows without a picture.
    """
    language: Any = model.model.language_model
    embedded = language.embed_tokens(batch.ids)
    if image_tokens is not None:
        places = (batch.ids == model.config.image_token_id).nonzero()[:, 0]
        embedded = embedded.index_copy(0, places, image_tokens.reshape(-1, HIDDEN).to(embedded.dtype))
    hidden = embedded[None]
    turns = language.rotary_emb(hidden, batch.positions)
    for layer in language.layers:
        hidden = hidden + _attend(layer.self_attn, layer.input_layernorm(hidden), turns, batch)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return language.norm(hidden)[0]


def _attend(attention: Any, hidden: Tensor, turns: tuple[Tensor, Tensor], batch: Packed) -> Tensor:
    """(1, N, 192) -> the same: attention in blocks, which touches a third of what one masked square would."""
    size, width = hidden.shape[1], attention.head_dim
    query = attention.q_norm(attention.q_proj(hidden).view(1, size, -1, width)).transpose(1, 2)
    key = attention.k_norm(attention.k_proj(hidden).view(1, size, -1, width)).transpose(1, 2)
    cos, sin = (turn[:, None] for turn in turns)
    query, key = _turned(query, cos, sin), _turned(key, cos, sin)
    value = attention.v_proj(hidden).view(1, size, -1, width).transpose(1, 2)
    query, key, value = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))  # (N, heads, 32)
    prefix_key, prefix_value = key[batch.prefix], value[batch.prefix]  # (B, P, heads, 32)
    out = torch.zeros_like(query)
    causal = torch.ones(batch.prefix.shape[1:] * 2, dtype=torch.bool, device=query.device).tril()[None, None]
    own = _scaled(query[batch.prefix], prefix_key, prefix_value, causal)
    out = out.index_copy(0, batch.prefix.flatten(), own.flatten(0, 1))
    for block in batch.blocks:
        index, real, row = block["index"], block["real"], block["row"]
        keys = torch.cat([prefix_key[row], key[index]], dim=1)
        values = torch.cat([prefix_value[row], value[index]], dim=1)
        seen = _scaled(query[index], keys, values, block["mask"])
        out = out.index_copy(0, index[real], seen[real])
    return attention.o_proj(out.reshape(1, size, -1))


def _scaled(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention on (n, S, heads, 32); a mask (n or 1, 1, S, K) says who sees whom, None means all.

    Written out, because the fused kernel takes twice as long for blocks this small; the heads that share a key are
    one longer query.
    """
    count, size, heads, width = query.shape
    shared = key.shape[2]
    together = (query * width**-0.5).reshape(count, size, shared, heads // shared, width).permute(0, 2, 3, 1, 4)
    scores = together.reshape(count, shared, -1, width) @ key.permute(0, 2, 3, 1)  # (n, shared, rest * S, K)
    scores = scores.view(count, shared, heads // shared, size, -1)
    with torch.autocast(query.device.type, enabled=False):
        shares = (scores if mask is None else scores.masked_fill(~mask[:, :, None], -1e9)).softmax(-1)
    seen = shares.view(count, shared, -1, key.shape[1]) @ value.transpose(1, 2)
    return seen.view(count, shared, heads // shared, size, width).permute(0, 3, 1, 2, 4).reshape(query.shape)


def answer_loss(
    model: "Qwen3VLForConditionalGeneration", batch: Packed, image_tokens: Tensor | None, numbers: Tensor
) -> tuple[Tensor, Tensor]:
    """The weighted loss over the labelled positions, and the most likely token at every position, -1 at the others.

    `numbers` are the token ids of 0 to 112, whose order the soft coordinate labels follow.
    """
    labelled = (batch.labels >= 0) & (batch.weights > 0)
    logits = model.lm_head(hidden_states(model, batch, image_tokens)[labelled]).float()
    labels, weights, coordinate = batch.labels[labelled], batch.weights[labelled], batch.coordinates[labelled]
    losses = F.cross_entropy(logits, labels, reduction="none")
    if coordinate.any():
        value = (labels[coordinate][:, None] == numbers).long().argmax(-1)
        of_numbers = logits[coordinate][:, numbers]
        apart = torch.logsumexp(logits[coordinate], -1) - torch.logsumexp(of_numbers, -1)
        losses = losses.masked_scatter(coordinate, soft_number_loss(of_numbers, value) + apart)
    likely = torch.full_like(batch.labels, -1).masked_scatter(labelled, logits.argmax(-1))
    return (losses * weights).sum() / weights.sum(), likely


class StackedMuon(torch.optim.Optimizer):
    """Muon (github.com/KellerJordan/Muon) with matrices of one shape orthogonalised together, which suits one core."""

    def __init__(self, groups: Sequence[dict], lr: float, momentum: float = 0.95, weight_decay: float = 0.02) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._momentum(parameter, parameter.grad, group["momentum"])
                    update = update.T if update.shape[0] > update.shape[1] else update
                    by_shape.setdefault(tuple(update.shape), []).append((parameter, update))
            for same in by_shape.values():
                orthogonal = orthogonalised(torch.stack([update for _, update in same]))
                for (parameter, _), update in zip(same, orthogonal, strict=True):
                    update = update if parameter.shape[0] <= parameter.shape[1] else update.T
                    # 0.2 times the root of the longer side gives AdamW's typical step (arXiv 2502.16982).
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)

    def _momentum(self, parameter: nn.Parameter, gradient: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum)


def orthogonalised(matrices: Tensor, steps: int = 4) -> Tensor:
    """(N, m, n) with m <= n: about the nearest matrices with orthonormal rows, by Newton-Schulz in `quick_dtype`."""
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(quick_dtype(matrices.device.type))
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.to(matrices.dtype)


def optimizers(model: "Qwen3VLForConditionalGeneration", heads: Heads) -> list[torch.optim.Optimizer]:
    """Muon for weight matrices, AdamW for embeddings, norms, biases and heads; `scale` multiplies the stage's rate."""
    seeing = {id(parameter) for parameter in model.model.visual.parameters()}
    matrices: dict[bool, list] = {True: [], False: []}
    others: list = list(heads.parameters())
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices[id(parameter) in seeing] if is_matrix else others).append(parameter)
    groups = [{"params": matrices[sees], "scale": 1.0, "sees": sees} for sees in (False, True)]
    adam = [{"params": others, "scale": 0.6, "sees": False}]
    return [
        StackedMuon(groups, lr=0.0),
        torch.optim.AdamW(adam, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0, foreach=True),
    ]


def clip(parameters: Iterable[nn.Parameter], largest: float = 1.0) -> float:
    """The gradient norm before it was limited to `largest`."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, largest))
