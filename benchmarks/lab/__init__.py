"""The laboratory: the embedded model trained in many ways, each measured in the same way, with error bars.

    study      recipes/lab/study.yaml: groups of arms
    triplets   more triplets than the twenty of the package
    training   one arm and seed, trained: GRPO-GR through the package, or supervised
    measuring  the same held-out questions to every model
    results    one JSON row a run, kept as soon as the run is finished
    one        a run: train, measure, write its row
    jobs       what is missing, each in a process of its own
    analysis   rows to means, intervals and tests
    wording    numbers and tables in Markdown
    target     what the default recipe is held to
    tables     the tables of the page, and the numbers of its sentences
    figures    its figures
    headline   the table of the README
    page       docs/lab.md, made of all of these; its sentences are in readings/

`python -m benchmarks.lab` runs what is missing, `… page` writes the page, `… target` prints the check.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
