"""The laboratory's command line.

python -m benchmarks.lab             carry out every run of the study that is missing
python -m benchmarks.lab page        docs/lab.md and its figures from results.jsonl
python -m benchmarks.lab target      what the default recipe is held to, seed by seed
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.lab import ROOT
from benchmarks.lab.study import STUDY, load_study
from grit_lite.errors import GritLiteError, UsageError

OUTPUT = ROOT / "benchmarks" / "results" / "lab"


def run(given: Any) -> int:
    from benchmarks.lab.jobs import Jobs

    study = load_study(given.study)
    jobs = Jobs(study, given.study, given.output, given.scratch, given.share, given.split)
    return 1 if jobs.run(study.jobs(given.only or (), given.seeds), given.jobs) else 0


def page(given: Any) -> int:
    if find_spec("matplotlib") is None:
        raise UsageError("The page needs matplotlib for its figures: pip install 'grit-lite[lab]'")
    from benchmarks.lab.page import write_page

    print(write_page(given.output, given.docs, load_study(given.study)))
    return 0


def target(given: Any) -> int:
    from benchmarks.lab.page import read_results
    from benchmarks.lab.target import report

    text, met = report(read_results(given.output, load_study(given.study)))
    print(text)
    return 0 if met else 1


ACTIONS = {"run": run, "page": page, "target": target}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("action", nargs="?", choices=tuple(ACTIONS), default="run")
    options.add_argument("--only", nargs="+", metavar="GROUP/ARM", help="groups or arms; * stands for anything")
    options.add_argument("--seeds", nargs="+", type=int, metavar="SEED")
    options.add_argument("--jobs", type=int, default=2, help="runs at the same time, of one thread each")
    options.add_argument("--output", type=Path, default=OUTPUT, help="where results.jsonl lies")
    options.add_argument("--scratch", type=Path, default=Path("runs") / "lab", help="run folders, resumed from there")
    options.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page is written")
    options.add_argument("--study", type=Path, default=STUDY)
    options.add_argument("--share", type=float, default=1.0, help="of the questions; less is for trying out")
    options.add_argument(
        "--split", choices=("test", "validation"), default="test", help="validation: to choose a setting"
    )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return ACTIONS[given.action](given)
    except GritLiteError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped; the same command goes on.", file=sys.stderr)
        return 130


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
