"""How the report writes numbers: a true minus sign, a dash for what is unknown, durations as people say them."""

from typing import Any


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 6 min 12 s, 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float | None, sign: str = "") -> str:
    return "–" if share is None else f"{100 * share:{sign}.1f}".replace("-", "−")


def number(value: Any, decimals: int = 2, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.{decimals}f}".replace("-", "−")
