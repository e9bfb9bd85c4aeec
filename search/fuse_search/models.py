"""The verbs that use a trained network: predict and export."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from .errors import InputError, unwritable, warn
from .options import DEVICE, PLUGIN, RESULTS, TRACKING, Texts, takes

MODEL = click.option(
    "--model",
    required=True,
    metavar="RUN_OR_FOLDER",
    help="A run of MLflow by its ID; a study's folder, whose best trial's network it is; a file; "
    "or the folder of an export or of an MLflow model.",
)
TABLES = (".csv", ".parquet", ".pq")
ROOT = click.option(
    "--root", metavar="DIR", help="What paths in the table are relative to.  [default: its folder]"
)


@click.command()
@takes(MODEL)
@click.option("--input", "table", required=True, metavar="TABLE", help="A CSV or Parquet file.")
@click.option(
    "--output",
    metavar="FILE",
    default="predictions.csv",
    show_default=True,
    help="A CSV or Parquet file.",
)
@takes(ROOT)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What becomes of rows that can't be read: skip leaves what is predicted for them empty.",
)
@takes(PLUGIN, RESULTS, TRACKING, DEVICE)
def predict(
    model: str,
    table: str,
    output: str,
    root: str | None,
    on_error: str,
    device: str | None,
    **store: Any,
) -> None:
    """Write predictions, with probabilities, for the rows of a table."""
    refuse_in_the_way(Path(output), folder=False)
    if Path(output).suffix.lower() not in TABLES:
        raise InputError(f"--output {output}: must end in {' or '.join(TABLES)}")
    _refuse_same(Path(output), Path(table))
    with TemporaryDirectory() as folder:
        kept = _kept(model, Path(folder), **store)
        from .data.table import read_table
        from .predict import Predictor, cuts, predict_table, summary, write
        from .shared import device_named

        predictor = Predictor(kept, device_named(device))
        rows = read_table(Path(table), predictor.reads)
        skipped, cut = list[str](), Counter[str]()

        def chunks() -> Any:
            place = Path(root) if root else Path(table).parent
            for columns, faults, longer in predict_table(
                predictor, rows, place, on_error == "skip"
            ):
                skipped.extend(faults)
                cut.update(longer)
                yield columns

        write(chunks(), Path(output), predictor.gives)
        click.echo(f"wrote {output}: {len(rows):,} rows")
        for line in [*([summary(skipped)] if skipped else []), *cuts(cut, kept)]:
            warn(line)


@click.command()
@takes(MODEL)
@click.option("--output", required=True, metavar="DIR", help="The folder to write to.")
@click.option(
    "--input",
    "table",
    metavar="TABLE",
    help="Rows to check the programs on.  [default: validation rows of the study]",
)
@takes(ROOT, PLUGIN, RESULTS, TRACKING)
def export(
    model: str, output: str, table: str | None, root: str | None, results: str, **store: Any
) -> None:
    """Write the network as a torch.export program and as ONNX, and check both on real rows."""
    refuse_in_the_way(Path(output), folder=True)
    with TemporaryDirectory() as folder:
        kept = _kept(model, Path(folder), results=results, **store)
        from .data.table import read_table
        from .export import export as write
        from .export import rows_of_study, rows_of_table

        if table:
            place = Path(root) if root else Path(table).parent
            rows = rows_of_table(kept, read_table(Path(table)), place)
        else:
            rows = rows_of_study(kept, Path(results))
        for line in write(kept, rows, Path(output)):
            click.echo(line)


def refuse_in_the_way(output: Path, *, folder: bool) -> None:
    """Raises InputError when no file, or folder, can be written there."""
    try:
        there = next(place for place in (output, *output.absolute().parents) if place.exists())
        if there.is_dir() != (folder or there != output):
            kind, found = ("folder", "file") if folder else ("file", "folder")
            rule = f"must be a {kind}" if there == output else "must lie in folders"
            found = found if there == output else "file"
            raise InputError(f"--output {output}: {rule}, and {there} is a {found}")
    except OSError as error:
        raise unwritable(output, error) from None


def _refuse_same(output: Path, table: Path) -> None:
    if output.exists() and table.exists() and output.samefile(table):
        raise InputError(f"--output {output}: is the table that --input names; name another file")


def _kept(model: str, into: Path, plugins: Texts, results: str, tracking_uri: str | None) -> Any:
    from .plugins import use

    use(plugins)
    from .found import find
    from .kept import read_kept

    return read_kept(find(model, Path(results), tracking_uri, into))
