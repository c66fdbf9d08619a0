"""Hugging Face datasets as rows: by name, or from a folder or file that the `datasets` library wrote.

Images are taken as stored bytes, never decoded by the library, so that the same checks hold for every source.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from grit_lite.errors import DataError, NotFetched
from grit_lite.triplets.rows import FIELDS, RawRow, field_of, to_fields

if TYPE_CHECKING:
    from datasets import Dataset

_REQUIRED = ("question", "answer", "image")


def is_saved_dataset(path: Path) -> bool:
    """Whether the `datasets` library can open this file or folder: `save_to_disk`, or parquet."""
    if path.is_file():
        return path.suffix == ".parquet"
    return _is_saved_to_disk(path) or any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))


def read_hub(source: str, columns: Mapping[str, str], split: str | None) -> Iterator[RawRow]:
    """Every row of one split of a dataset.

    Args:
        source: a name on the hub, a folder or a .parquet file, each with or without ":SPLIT" or ":CONFIGURATION:SPLIT"
            behind it.
        columns: GRIT's name -> the dataset's column, where they differ.
        split: wins over the one in `source`; "train" where neither is given.

    Raises:
        DataError: no such folder, configuration, split or column, or several columns for one field.
        NotFetched: it is not on this machine, and the hub cannot be reached or does not open it to this user.
    """
    name, configuration, named_split = _parts(source)
    if not name.strip():
        raise DataError("hf: names no dataset. Write hf:owner/name, or hf:owner/name:SPLIT.")
    split = split or named_split or "train"
    dataset = _only_needed(_open(name, configuration, split), columns, name)
    image = columns.get("image", "image")
    folders = _folders(Path(name))
    defaults = {"dataset": Path(name).stem.lower(), "split": split}
    labels = label_names(dataset)
    for number, row in enumerate(cast("Iterable[dict[str, Any]]", dataset), start=1):
        values = row | {column: to_name(row[column]) for column, to_name in labels.items()}
        values[image] = _stored_image(values[image], folders)
        yield RawRow(f"hf:{name}:{split}", number, defaults | to_fields(values, columns), folders)


def first_line(error: Exception) -> str:
    """What a library says, without its advice."""
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def not_open(name: str, error: Exception) -> NotFetched:
    """The hub does not know a dataset, or does not show it to this user; it does not say which."""
    return NotFetched(
        f"The hub has no dataset {name!r}, or does not open it to you ({first_line(error)}). Check the name. If it is "
        f"private or gated, accept its conditions at https://huggingface.co/datasets/{name} and log in: hf auth login, "
        "or a valid token in HF_TOKEN."
    )


def unreachable(name: str, error: Exception, advice: str) -> NotFetched:
    return NotFetched(
        f"The dataset {name!r} is not on this machine, and the hub cannot be reached ({first_line(error)}). {advice}"
    )


def _parts(source: str) -> tuple[str, str | None, str | None]:
    """Name, configuration and split. A colon in a path that exists belongs to the path."""
    name, ends = source, []
    while ":" in name and not Path(name).exists() and len(ends) < 2:
        name, _, end = name.rpartition(":")
        ends.insert(0, end)
    configuration, split = (None, None, *ends)[-2:]
    return name, configuration, split


def _folders(path: Path) -> tuple[Path, ...]:
    """Where relative image paths of a dataset are looked for: beside its files; nowhere for a name on the hub."""
    if not path.exists():
        return ()
    return (path,) if path.is_dir() else (path.parent,)


def _is_saved_to_disk(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _open(name: str, configuration: str | None, split: str) -> "Dataset":
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        if _is_saved_to_disk(Path(name)):
            return _from_disk(name, split)
        if name.endswith(".parquet"):
            return load_dataset("parquet", data_files={split: name}, split=split)
        return load_dataset(name, configuration, split=split)
    except ConnectionError as error:
        advice = f"Fetch it once with a network: grit-lite data check hf:{name}. Or give a folder or a .parquet file."
        raise unreachable(name, error, advice) from error
    except (DatasetNotFoundError, HfHubHTTPError) as error:
        raise not_open(name, error) from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"The dataset {name!r} cannot be opened: {error}. Give hf:NAME, hf:NAME:SPLIT or "
            "hf:NAME:CONFIGURATION:SPLIT as the hub has it, or the path of a folder or .parquet file."
        ) from error


def _from_disk(name: str, split: str) -> "Dataset":
    from datasets import Dataset, load_from_disk

    saved = load_from_disk(name)
    if isinstance(saved, Dataset):
        return saved
    if split not in saved:
        raise DataError(f"The dataset {name!r} has no split {split!r}; it has {', '.join(map(str, saved))}.")
    return saved[split]


def _only_needed(dataset: "Dataset", columns: Mapping[str, str], name: str) -> "Dataset":
    """The columns that are read, images as they are stored."""
    from datasets import Image

    missing = [columns.get(field, field) for field in (*_REQUIRED, *columns)]
    missing = [column for column in missing if column not in dataset.column_names]
    if missing:
        raise DataError(
            f"The dataset {name!r} has no column {missing[0]!r}; it has {', '.join(dataset.column_names)}. Say which "
            f"is which in the recipe, such as columns: {{{FIELDS[0]}: THEIR_NAME}}; fields are {', '.join(FIELDS)}."
        )
    dataset = dataset.select_columns([column for column in dataset.column_names if field_of(column, columns)])
    image = columns.get("image", "image")
    if isinstance(dataset.features[image], Image):
        dataset = dataset.cast_column(image, Image(decode=False))
    return dataset


def label_names(dataset: "Dataset") -> dict[str, Callable[[int | None], str | None]]:
    """For each column of class labels, what turns a stored number into its name."""
    from datasets import ClassLabel

    labels = {column: feature for column, feature in dataset.features.items() if isinstance(feature, ClassLabel)}
    return {
        column: lambda number, feature=feature: None if number is None else str(feature.int2str(number))
        for column, feature in labels.items()
    }


def _stored_image(value: Any, folders: tuple[Path, ...]) -> Any:
    """The bytes of an image feature, or its path; anything else is left for the row's check to name."""
    if not isinstance(value, dict):
        return value
    path = value.get("path")
    if value.get("bytes") is not None or path is None:
        return value.get("bytes")
    return Path(path) if _is_the_librarys_own(Path(path), folders) else path


def _is_the_librarys_own(path: Path, folders: tuple[Path, ...]) -> bool:
    """Whether an absolute path lies where the library itself puts images: its caches, or the dataset's own folder."""
    from datasets import config
    from huggingface_hub import constants

    homes = (*folders, Path(config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE))
    return path.is_absolute() and any(path.resolve().is_relative_to(home.resolve()) for home in homes)
