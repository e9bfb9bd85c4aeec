"""Datasets of Hugging Face, by the package `datasets`: from local files, or downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from fuse_search.data.listing import within
from fuse_search.data.manifest import Layout, rows_of
from fuse_search.data.readers.reader import Cell
from fuse_search.data.record import Data
from fuse_search.data.table import Table, cell_of
from fuse_search.data.wanted import NOTHING, Wanted
from fuse_search.errors import InputError
from fuse_search.spec import Readers, Share, Targets

SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val"}
SPLITS |= {"test": "test"}
SAVED = ("dataset_dict.json", "state.json")  # by save_to_disk


def huggingface(
    image_size: int | None,
    seed: int,
    wanted: Wanted = NOTHING,
    *,
    path: str,
    name: str | None = None,
    inputs: Readers | None = None,
    targets: Targets | None = None,
    split: str | None = None,
    group: str | None = None,
    val_share: Share = 0.15,
    test_share: Share = 0.15,
    on_error: Literal["fail", "skip"] = "fail",
) -> Data:
    """A dataset of Hugging Face: a folder, or a name on its hub; else as a manifest.

    A folder is one that save_to_disk has written, or of CSV, Parquet, JSON, image or sound files.
    name: of the configuration. Its own splits train, validation and test are ours, unless `split`
    names a column; others aren't read. Code in a dataset is never run, and of a folder nothing is
    read that lies outside.

    Raises InputError for a missing package or dataset, and as a manifest does.
    """
    place = "data.source.huggingface"
    layout = Layout(place, inputs, targets, split, group, val_share, test_share, on_error)
    table = _table(path, name, wanted.folder if wanted.keeps else None)
    return rows_of(table, Path(path), layout, image_size, seed, wanted)


class Column(Sequence[Cell]):
    """The cells of a column, each read when it is asked for; a label's are its names."""

    def __init__(self, rows: Any, name: str, place: str) -> None:
        feature = rows.features[name]
        if hasattr(feature, "decode"):  # images and sounds: their files as they are
            rows = rows.cast_column(name, type(feature)(decode=False))
        self._names: list[str] | None = getattr(feature, "names", None)
        self._rows, self._name, self._place = rows.select_columns([name]), name, f"{place}: {name}"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Cell:  # type: ignore[override]
        if row >= len(self):
            raise IndexError(row)
        value = self._rows[row][self._name]
        if self._names is not None and value is not None:
            return self._names[value] if value >= 0 else None
        return cell_of(value, self._place)


def _table(path: str, name: str | None, folder: Path | None) -> Table:
    """The rows of all splits that we know, one below the other."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import datasets
    except ImportError:
        rule = 'needs the package datasets: pip install "fuse-search[hf]"'
        raise InputError(f"data.source.huggingface: {rule}") from None
    datasets.disable_progress_bars()
    try:
        if any(Path(path, file).is_file() for file in SAVED):
            _refuse_outside(Path(path), _saved(Path(path)))
            found = datasets.load_from_disk(path)
        elif Path(path).is_dir():
            found = _from_files(path, name, folder)
        else:
            found = datasets.load_dataset(path, name)
        parts = dict(found) if isinstance(found, dict) else {"train": found}
        parts = {split: part for split, part in parts.items() if split in SPLITS and len(part)}
        rows = datasets.concatenate_datasets([*parts.values()]) if parts else None
    except InputError:
        raise
    except Exception as error:  # they raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"data.source.huggingface.path: {path}: {reason}") from None
    if rows is None:
        raise InputError(f"data.source.huggingface.path: {path} has no rows to train on")
    of = [(split, row) for split, part in parts.items() for row in range(1, len(part) + 1)]
    columns = {column: Column(rows, column, path) for column in rows.column_names}
    splits = [SPLITS[split] for split, _ in of]
    return Table(path, columns, lambda row: "{}: {} row {}".format(path, *of[row]), (), splits)


def _from_files(path: str, name: str | None, folder: Path | None) -> Any:
    """The splits of a folder of files; what is made of them is kept in `folder`."""
    import datasets

    _refuse_outside(Path(path), _named(Path(path)))
    # what is made of local files is ours, what is downloaded lies where others look too
    cache = folder and str(folder / "huggingface")
    made = datasets.load_dataset_builder(path, name, cache_dir=cache)
    files = made.config.data_files or {}
    _refuse_outside(Path(path), (file for part in files.values() for file in part))
    made.download_and_prepare()
    return made.as_dataset()


def _saved(folder: Path) -> Iterator[str]:
    """What load_from_disk reads in a folder."""
    parts = [""]
    if (about := folder / SAVED[0]).is_file():
        parts += json.loads(about.read_text(encoding="utf-8"))["splits"]
    for part in parts:
        yield from (str(Path(part, file)) for file in (*SAVED, "dataset_info.json"))
        if (state := within(folder, folder / part / SAVED[1], part)).is_file():
            about = json.loads(state.read_text(encoding="utf-8"))
            yield from (str(Path(part, each["filename"])) for each in about["_data_files"])


def _named(folder: Path) -> Iterator[str]:
    """The files, folders and patterns of these that a folder's own description names."""
    from datasets import config
    from huggingface_hub import DatasetCard

    for file in (config.REPOCARD_FILENAME, config.REPOYAML_FILENAME):
        yield file
        about = within(folder, folder / file, file)
        if about.is_file():
            text = about.read_text(encoding="utf-8")
            card = text if about.suffix == ".md" else f"---\n{text}\n---\n"
            for each in DatasetCard(card).data.to_dict().get("configs") or ():
                yield from _texts([each.get("data_files"), each.get("data_dir")])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _refuse_outside(folder: Path, names: Iterable[str]) -> None:
    """Raise InputError for what lies outside of the folder; names are relative to it."""
    for name in names:
        place = f"data.source.huggingface.path: {name}"
        if "://" in name or "::" in name:
            raise InputError(f"{place}: lies outside the folder {folder}, and only that is read")
        within(folder, folder / name, place)
