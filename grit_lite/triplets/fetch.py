"""GRIT's released triplets brought here: what is missing, how large it is, then file by file.

Rows come through huggingface_hub and its cache, each image from its own host (`grit.Sources`). What is here as it was
fetched is not asked for again, so that a fetch which was stopped, or which failed in part, goes on when repeated.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import httpx
from filelock import AcquireReturnProxy, FileLock, Timeout
from rich.filesize import decimal

from grit_lite.errors import DataError, GritLiteError, NotFetched, UsageError
from grit_lite.triplets.download import Web
from grit_lite.triplets.grit import REPOSITORY, REVISION, SPLITS, Sources, grit_folder, image_folder
from grit_lite.triplets.hub import first_line, not_open, unreachable
from grit_lite.triplets.images import inspect, read_bytes
from grit_lite.triplets.manifest import Manifest
from grit_lite.triplets.rows import BadRow, RawRow, check_row, image_inside, read_jsonl

SOURCES = Sources()
MAX_IMAGE_BYTES = 32 * 1024 * 1024
_ASKED_FOR_SIZE = 40  # images; of more, the size of the others is taken to be the mean of these


@dataclass(frozen=True)
class Annotation:
    """A file of rows, in the hub's cache."""

    file: str
    path: Path
    commit: str


@dataclass(frozen=True)
class Image:
    """An image that rows need, relative to the data folder, and where it may be had."""

    file: str
    addresses: tuple[str, ...]
    rows: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """What is to be fetched.

    Attributes:
        here: how many files are in the folder already, as they were fetched.
        image_bytes: of all images to fetch, estimated where there are many; None where no host says.
        bad_rows: rows whose image cannot be asked for.
    """

    folder: Path
    sources: Sources
    annotations: list[Annotation] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    here: int = 0
    image_bytes: int | None = 0
    bad_rows: list[BadRow] = field(default_factory=list)

    @property
    def missing(self) -> bool:
        return bool(self.annotations or self.images)

    def describe(self) -> str:
        """How many files, how large, from where and to where, as text for a person."""
        if not self.missing:
            return f"Nothing to fetch: {self.here} files of {REPOSITORY} are in {self.folder}."
        lines = [f"{REPOSITORY}, into {self.folder} ({self.here} files are there):"]
        if self.annotations:
            size = sum(annotation.path.stat().st_size for annotation in self.annotations)
            lines.append(f"  {len(self.annotations)} files of rows, {decimal(size)}")
        if self.images:
            hosts = sorted({httpx.URL(image.addresses[0]).host for image in self.images})
            lines.append(f"  {len(self.images)} images, {self._image_size()}, from {' and '.join(hosts)}")
        return "\n".join(lines)

    def _image_size(self) -> str:
        if self.image_bytes is None:
            return "of a size that their hosts do not say"
        return f"{'about ' * (len(self.images) > _ASKED_FOR_SIZE)}{decimal(self.image_bytes)}"


@dataclass(frozen=True)
class Outcome:
    """What became of an image: its bytes are here, or the error."""

    image: Image
    bytes: int = 0
    error: GritLiteError | None = None

    def __str__(self) -> str:
        return f"{', '.join(self.image.rows)}: {self.error}"


def plan_grit(splits: Sequence[str], sources: Sources | None = None) -> Plan:
    """What of these splits is not here yet. Reads the annotations through the hub's cache; writes nothing of ours.

    Raises:
        NotFetched: the hub cannot be reached, or does not let us in.
    """
    plan = Plan(grit_folder(), sources or SOURCES)
    manifest = Manifest(plan.folder)
    files = [file for split in splits for file in SPLITS[split]]
    plan.annotations = [_annotation(file, plan.sources) for file in files if not manifest.holds(file)]
    paths = {file: plan.folder / file for file in files} | {found.file: found.path for found in plan.annotations}
    images: dict[str, Image] = {}
    for file, path in paths.items():
        _collect(file, path, plan, images)
    plan.images = [image for image in images.values() if not _is_here(image.file, manifest)]
    plan.here = len(files) + len(images) - len(plan.annotations) - len(plan.images)
    if plan.images:
        _refuse_offline(plan.folder)
        plan.image_bytes = _size_of(plan)
    return plan


def fetch_grit(plan: Plan, web: Web | None = None) -> Iterator[Outcome]:
    """Carry a plan out: all annotations, then an outcome for each image as it is there or given up.

    Raises:
        NotFetched: the folder cannot be written to.
        UsageError: another process is fetching into it.
    """
    with _lock(plan.folder), web or Web(plan.sources.trusted) as web:
        manifest = Manifest(plan.folder)
        for annotation in plan.annotations:
            source = f"hf://datasets/{REPOSITORY}@{annotation.commit}/{annotation.file}"
            manifest.add(annotation.file, annotation.path.read_bytes(), source)
        for image in plan.images:
            yield _fetch_image(image, manifest, web)


def summary(plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What a fetch did, for programs."""
    return {
        "folder": str(plan.folder),
        "here_before": plan.here,
        "fetched": len(plan.annotations) + sum(outcome.error is None for outcome in outcomes),
        "bytes": sum(outcome.bytes for outcome in outcomes),
        "failed": [
            {"rows": outcome.image.rows, "addresses": outcome.image.addresses, "reason": str(outcome.error)}
            for outcome in outcomes
            if outcome.error is not None
        ],
        "bad_rows": [asdict(row) for row in plan.bad_rows],
    }


def failure(plan: Plan, outcomes: Sequence[Outcome]) -> GritLiteError | None:
    """One error that lists every row without its image, or None: exit code 4 where a host was at fault, else 3."""
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    lines = [*map(str, plan.bad_rows), *map(str, failed)]
    if not lines:
        return None
    kind = NotFetched if any(isinstance(outcome.error, NotFetched) for outcome in failed) else DataError
    return kind(
        f"{len(lines)} of {len(plan.images) + len(plan.bad_rows)} images could not be fetched:\n"
        + "".join(f"  {line}\n" for line in lines)
        + "The others are kept. The same command asks for these again; an image from elsewhere may be put into "
        f"{plan.folder} by hand, where `grit-lite data check grit` expects it; --bad-rows skip leaves them out."
    )


def _refuse_offline(folder: Path) -> None:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise NotFetched(f"Images are missing in {folder}, and HF_HUB_OFFLINE is set. Unset it to fetch them.")


def _annotation(file: str, sources: Sources) -> Annotation:
    from huggingface_hub import errors, hf_hub_download

    try:
        about = hf_hub_download(
            REPOSITORY, file, repo_type="dataset", revision=REVISION, endpoint=sources.hub, dry_run=True
        )
        commit = about.commit_hash
        path = hf_hub_download(REPOSITORY, file, repo_type="dataset", revision=commit, endpoint=sources.hub)
    except (errors.RemoteEntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise DataError(
            f"{REPOSITORY} on the hub no longer has {file} ({first_line(error)}). Please report it."
        ) from error
    except errors.HfHubHTTPError as error:
        raise not_open(REPOSITORY, error) from error
    except (OSError, httpx.HTTPError) as error:
        raise unreachable(REPOSITORY, error, "Repeat this with a network.") from error
    return Annotation(file, Path(path), commit)


def _collect(file: str, path: Path, plan: Plan, images: dict[str, Image]) -> None:
    """Adds the images that the rows of a file need, each once, and the rows that name none."""
    folder = image_folder(file)
    for raw in read_jsonl(path, {}):
        try:
            name = _image_name(raw, plan.folder / folder)
        except DataError as error:
            plan.bad_rows.append(BadRow(file, raw.line, str(error)))
            continue
        image = Image(f"{folder}/{name}", plan.sources.addresses(folder, name))
        images.setdefault(image.file, image).rows.append(f"{file}:{raw.line}")


def _image_name(raw: RawRow | BadRow, folder: Path) -> str:
    if isinstance(raw, BadRow):
        raise DataError(raw.reason)
    name = str(check_row(raw, {}).image)
    image_inside(name, folder)
    return name


def _is_here(file: str, manifest: Manifest) -> bool:
    """As it was fetched; or not noted but a whole image: put there by hand, or by a fetch that was stopped then."""
    if manifest.notes(file):
        return manifest.holds(file)
    try:
        inspect(read_bytes(manifest.folder / file))
    except DataError:
        return False
    return True


def _size_of(plan: Plan) -> int | None:
    """The bytes of the images to fetch, as far as their hosts say before they are asked to send them."""
    asked = plan.images[:: len(plan.images) // _ASKED_FOR_SIZE + 1]
    sizes = []
    with suppress(NotFetched), Web(plan.sources.trusted) as web:
        for image in asked:
            with suppress(DataError):  # what is wrong with an address is said when it is asked for the image
                sizes.append(web.size(image.addresses))
    known = [size for size in sizes if size is not None]
    return round(mean(known) * len(plan.images)) if known else None


def _fetch_image(image: Image, manifest: Manifest, web: Web) -> Outcome:
    try:
        data, address = web.fetch(image.addresses, MAX_IMAGE_BYTES)
        _check_image(data, address)
    except (DataError, NotFetched) as error:
        return Outcome(image, error=error)
    manifest.add(image.file, data, address)
    return Outcome(image, len(data))


def _check_image(data: bytes, address: str) -> None:
    try:
        inspect(data)
    except DataError as error:
        raise DataError(f"{address}: {error}") from error


def _lock(folder: Path) -> AcquireReturnProxy:
    """The folder, for this process alone until it is released."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / "lock").acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"Another process is fetching into {folder}. Wait until it is done.") from error
    except OSError as error:
        raise NotFetched(
            f"{folder} cannot be written to ({error.strerror or error}). Name another folder in GRIT_LITE_DATA."
        ) from error
