"""Where the files of a benchmark are: on the hub, or in a copy of one's own; and what its tables and images are there.

The hub's files come through its client and its cache, only those that a benchmark names; the same files in a folder,
under the same names, are a copy. Nothing is decoded here.
"""

import base64
import binascii
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

import httpx

from grit_lite.errors import DataError, NotFetched
from grit_lite.triplets import fetch
from grit_lite.triplets.download import Web
from grit_lite.triplets.hub import first_line, label_names, unreachable
from grit_lite.triplets.images import MAX_FILE_BYTES, measure
from grit_lite.triplets.manifest import Manifest, data_folder
from grit_lite.triplets.rows import image_inside, shorten

if TYPE_CHECKING:
    from datasets import Dataset

LOCAL = "local"  # the revision of a copy of one's own
_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}


@dataclass(frozen=True)
class Repository:
    """A dataset of the hub at one revision, by its name OWNER/NAME."""

    name: str
    revision: str

    def how_to_get(self) -> str:
        revision = "" if self.revision == "main" else f" --revision {self.revision}"
        return (
            "Where there is a network, its files are fetched when it is used; or fetch them by hand: hf download "
            f"{self.name} --repo-type dataset{revision} --local-dir FOLDER, and give --source FOLDER."
        )


@dataclass(frozen=True)
class Place:
    """A folder of files, or a single one.

    Attributes:
        root: no image leads out of here; in the hub's cache files are links into another folder of the same dataset.
        revision: the hub's commit, or `LOCAL`.
    """

    path: Path
    root: Path
    revision: str

    @property
    def folder(self) -> Path:
        return self.path.parent if self.path.is_file() else self.path


def copy_at(source: str | Path) -> Place:
    """A copy of one's own.

    Raises:
        DataError: there is nothing.
    """
    path = Path(source)
    if not path.exists():
        raise DataError(f"There is nothing at {source} (--source). Give the folder or file of a copy of the benchmark.")
    return Place(path, path.parent if path.is_file() else path, LOCAL)


def fetched(repository: Repository, patterns: Sequence[str]) -> Place:
    """The files of a dataset that match one of the patterns, brought into the hub's cache if they are not there.

    Raises:
        NotFetched: the hub cannot be reached, or has no such dataset for this user. The message says what else to do.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(
            repository.name, repo_type="dataset", revision=repository.revision, allow_patterns=list(patterns)
        )
    except errors.RevisionNotFoundError as error:
        raise NotFetched(
            f"The dataset {repository.name} has no revision {repository.revision} any more ({first_line(error)}). "
            "Please report it; a copy of it can be given with --source."
        ) from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise unreachable(repository.name, error, repository.how_to_get()) from error
        raise NotFetched(
            f"The hub has no dataset {repository.name}, or does not open it to you ({first_line(error)}). If it is "
            f"gated, accept its conditions at https://huggingface.co/datasets/{repository.name} and log in: hf auth "
            "login, or a valid token in HF_TOKEN. A copy of it can be given with --source."
        ) from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise unreachable(repository.name, error, repository.how_to_get()) from error
    path = Path(folder)
    return Place(path, path.parent.parent, path.name)


# tables


def open_table(place: Place, pattern: str, configuration: str, split: str) -> "Dataset":
    """The rows of one configuration and split, images as they are stored, class labels by their names.

    Args:
        pattern: the files as they are called on the hub. In a copy of one's own a folder of `save_to_disk`, a single
            file, or a file that is named after the split will do.

    Raises:
        DataError: no such files, or they are no table.
    """
    from datasets.exceptions import DatasetsError

    try:
        table = _open(place, pattern, configuration, split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{place.path} cannot be read as a table: {first_line(error)}. Fetch it again.") from error
    return _as_stored(table)


def _open(place: Place, pattern: str, configuration: str, split: str) -> "Dataset":
    from datasets import Dataset, load_dataset, load_from_disk

    folder = place.path / configuration if (place.path / configuration).is_dir() else place.path
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        saved = load_from_disk(str(folder))
        if not isinstance(saved, Dataset) and split not in saved:
            raise DataError(f"{folder} has no split {split!r}; it has {', '.join(map(str, saved))}.")
        return saved if isinstance(saved, Dataset) else saved[split]
    files = [place.path] if place.path.is_file() else _files(place.path, folder, pattern, split)
    builder = _BUILDERS.get(files[0].suffix)
    if builder is None:
        raise DataError(f"{files[0]} is none of {', '.join(_BUILDERS)}, the tables that can be read.")
    return cast("Dataset", load_dataset(builder, data_files={split: list(map(str, files))}, split=split))


def _files(root: Path, folder: Path, pattern: str, split: str) -> list[Path]:
    if named := sorted(path for path in root.glob(pattern) if path.is_file()):
        return named
    tables = sorted(path for at in (folder, folder / "data") for path in at.glob("*") if path.suffix in _BUILDERS)
    if of_split := [path for path in tables if path.stem == split or path.stem.startswith((f"{split}-", f"{split}_"))]:
        return [path for path in of_split if path.suffix == of_split[0].suffix]
    if len(tables) == 1:
        return tables
    found = ", ".join(path.name for path in tables[:8]) or "no table"
    raise DataError(f"{root} has no {pattern}, and no table named after the split {split!r}; it has {found}.")


def _as_stored(table: "Dataset") -> "Dataset":
    from datasets import Image, List

    for column, feature in table.features.items():
        if isinstance(feature, Image):
            table = table.cast_column(column, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            table = table.cast_column(column, List(Image(decode=False)))
    return table


def named_labels(table: "Dataset", row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with names for the numbers of class labels."""
    return {**row, **{column: name(row[column]) for column, name in label_names(table).items() if column in row}}


# images


def stored(value: Any) -> Any:
    """The bytes of an image as a dataset holds it, or the name of its file."""
    if not isinstance(value, Mapping):
        return value
    return value["path"] if value.get("bytes") is None else value["bytes"]


def from_base64(value: str) -> bytes:
    """The image that a text holds, as tables of tab-separated values do.

    Raises:
        DataError: it is not base64.
    """
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise DataError(f"its image is not base64 ({error})") from error


class ImageFiles:
    """Image files that rows name, in a folder of a place or in a zip file of the same name.

    Args:
        within: the folder or the zip file ("imgs.zip"), relative to the place; empty for the place itself.
    """

    def __init__(self, place: Place, within: str = "") -> None:
        self.place, self.within = place, within
        self.folder = place.folder / within.removesuffix(".zip")
        self.archive = place.folder / within if within.endswith(".zip") else None

    def find(self, name: str) -> Path | bytes:
        """The file of an image, or its bytes where it is inside an archive.

        Raises:
            DataError: it is not there, or its name leads elsewhere.
        """
        if not name:
            raise DataError("it names no image")
        path = image_inside(str(self.folder.relative_to(self.place.root) / name), self.place.root)
        if path.is_file():
            return path
        if self.archive is not None and self.archive.is_file():
            return self._from_archive(name)
        raise DataError(f"there is no image {shorten(name)} in {self.archive or self.folder}")

    def _from_archive(self, name: str) -> bytes:
        member = f"{Path(self.within).stem}/{name}"
        try:
            with zipfile.ZipFile(cast("Path", self.archive)) as archive:
                if archive.getinfo(member).file_size > MAX_FILE_BYTES:
                    raise DataError(f"image {shorten(name)} in {self.archive} is larger than {MAX_FILE_BYTES:,} bytes")
                return archive.read(member)
        except (KeyError, zipfile.BadZipFile, OSError, RuntimeError) as error:
            raise DataError(f"image {shorten(name)} cannot be read from {self.archive} ({error})") from error

    def beside(self, name: str) -> dict[str, Any]:
        """The JSON object beside an image, in a file of the same name that ends in .json.

        Raises:
            DataError: it is not there, or is none.
        """
        path = self.find(str(PurePosixPath(name).with_suffix(".json")))
        try:
            values = json.loads(path if isinstance(path, bytes) else path.read_bytes())
        except (ValueError, OSError, RecursionError) as error:
            raise DataError(f"the annotation of image {shorten(name)} is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise DataError(f"the annotation of image {shorten(name)} is not an object")
        return values


class WebImages:
    """Image files that a dataset leaves with public hosts: each is fetched once, into a folder of fetched data."""

    def __init__(self, name: str) -> None:
        self.manifest = Manifest(data_folder() / name)
        self.web: Web | None = None

    def find(self, name: str, addresses: Sequence[str]) -> Path:
        """The file of an image, fetched from the first of the addresses that has it.

        Raises:
            DataError: none has it, or what one sends is no image.
            NotFetched: no host can be asked.
        """
        path = image_inside(name, self.manifest.folder)
        if not self.manifest.holds(name):
            self._fetch(name, addresses)
        return path

    def _fetch(self, name: str, addresses: Sequence[str]) -> None:
        from huggingface_hub import constants

        if constants.is_offline_mode():
            raise NotFetched(f"image {shorten(name)} has not been fetched, and HF_HUB_OFFLINE is set; unset it")
        try:
            data, address = self._asking().fetch(addresses, fetch.MAX_IMAGE_BYTES)
            measure(data)
            self.manifest.add(name, data, address)
        except NotFetched as error:
            raise NotFetched(f"{error}; what was fetched is kept, and the same command goes on") from error

    def _asking(self) -> Web:
        if self.web is None:
            print(f"Images are fetched into {self.manifest.folder}, once.", file=sys.stderr)
            self.web = Web(fetch.SOURCES.trusted)
        return self.web

    def close(self) -> None:
        if self.web is not None:
            self.web.__exit__()
