"""The laboratory: the embedded model trained in many ways, each measured in the same way, with error bars.

    study      recipes/lab/study.yaml: groups of arms
    triplets   more triplets than the twenty of the package
    training   one arm and seed, trained: GRPO-GR through the package, or supervised
    measuring  the same held-out questions to every model
    results    one JSON row a run, kept as soon as the run is finished
    jobs       what is missing, each in a process of its own
    analysis   rows to means, intervals and tests
    page       docs/lab.md with its figures; reads the rows and nothing else
    target     what the default recipe is held to

`python -m benchmarks.lab` runs what is missing, `… page` writes the page, `… target` prints the check.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
