"""The embedded default model: a Qwen3-VL of 2.65 million parameters and the drawn-scene world it was pre-trained on.

`world` draws scenes with exact boxes, `questions` asks about them, `build` makes the tokenizer, processor and model,
`pretrain` trains the weights that lie in `weights/`, `measure` says how good they are. It is a laboratory: what holds
here is no claim about photographs. This file imports nothing heavy.
"""

from pathlib import Path

WEIGHTS: Path = Path(__file__).parent / "weights"
TRIPLETS: Path = Path(__file__).parent / "triplets" / "triplets.jsonl"
