"""A benchmark of your own: questions about a car park, in a JSONL file beside its photographs.

A line of parking.jsonl:

    {"photo": "12.jpg", "asked": "How many cars are parked?", "truth": 4, "cars": [[10, 20, 60, 40]], "camera": "north"}

`cars` are boxes [x, y, width, height] in pixels of the photo. Ask a run:

    grit-lite eval runs/NAME --benchmark docs/own_benchmark.py:PARKING --source FOLDER

Give `hub` and `revision` instead of --source if it is a dataset on the Hugging Face hub. What else a declaration can
say is in grit_lite/evaluate/benchmarks/benchmark.py; public.py there has forty more.
"""

from grit_lite.evaluate.benchmarks import Benchmark, xywh

PARKING = Benchmark(
    name="parking",
    hub="",  # only --source
    split="test",
    table="parking.jsonl",
    columns=("photo", "asked", "truth", "cars", "camera"),
    image=(),  # images are files beside the rows, not a column
    image_file="{photo}",
    prompt="{asked}\nAnswer with a single number.",
    gold="{truth}",
    boxes=xywh("cars"),
    part="{camera}",  # accuracy is reported for each camera, too
    scorer="number",
    licence="mine",
    schema="I wrote it",
    verified=True,
)
