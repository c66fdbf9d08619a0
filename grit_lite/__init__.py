"""grit-lite: teach a vision-language model to think with boxes, on one GPU (GRIT, arXiv 2505.15879)."""

__version__ = "0.1.0"
