"""The command line: the main job, and verbs beside it.

Exit codes: see `cli`.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .errors import (
    InputError,
    Preempted,
    StoreUnreachable,
    StudyStopped,
    TrialError,
    masked,
    unwritable,
)
from .models import export, predict, refuse_in_the_way
from .options import (
    BUDGET,
    DEVICE,
    PLUGIN,
    RESULTS,
    SET,
    SPACE,
    STORAGE,
    TRACKING,
    Texts,
    takes,
)
from .stop import SIGNALS
from .version import VERSION

# torch, optuna and mlflow take seconds to import: every verb imports what it needs when it runs.

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@takes(SPACE, SET, PLUGIN, RESULTS, STORAGE, TRACKING, DEVICE, BUDGET)
@click.option(
    "--trials", type=click.IntRange(1), help="Finished trials that there shall be in all."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes that train at once; GPUs are dealt out to them.",
)
@click.version_option(VERSION)
@click.pass_context
def cli(context: click.Context, space: str | None, trials: int | None, **options: Any) -> None:
    """Search over how to merge networks: fuse-search --space spaces/fusion.yaml

    Creates the space's study or continues it until it holds --trials finished trials in all.

    Exit codes: 0 done; 2 the input is wrong; 130 interrupted; 1 a fault of ours, or stopped: trial
    after trial failed, a store was away for too long, the disk was full.
    """
    context.obj["continues"] = context.invoked_subcommand in (None, "confirm")
    if context.invoked_subcommand is not None:
        _refuse_before(context, context.invoked_subcommand)
        return
    if space is None:
        if _given(context):
            raise click.UsageError("--space FILE is needed")
        click.echo(context.get_help())
        return
    read_first(space, options["overrides"], options["plugins"])
    from .launch import run

    run(space, trials, **options)


def _refuse_before(context: click.Context, verb: str) -> None:
    """Options before a verb would be lost without a word."""
    for name in _given(context):
        long = {"overrides": "set", "plugins": "plugin"}.get(name, name)
        option = "--" + long.replace("_", "-")
        raise click.UsageError(f"{option} belongs behind the verb: fuse-search {verb} {option} …")


def _given(context: click.Context) -> list[str]:
    """The options that the command line has."""
    default = ParameterSource.DEFAULT
    return [n for n in context.params if context.get_parameter_source(n) is not default]


@cli.command()
@takes(SPACE, SET, PLUGIN, RESULTS, DEVICE)
def check(
    space: str | None, overrides: Texts, plugins: Texts, results: str, device: str | None
) -> None:
    """Find everything that is wrong with a space, without training.

    Nothing is written to --results, and rows that a run has kept there are not read again. Weights
    and data that the space names are downloaded, where they aren't here.
    """
    checked = read_first(_needed(space), overrides, plugins)
    from .plugins import in_use
    from .preflight import preflight

    ready = preflight(checked, device, Path(results), keep=False)
    rows = {name: len(split) for name, split in ready.shared.data.splits.items()}
    click.echo(f"{space}: fits together; rows: {json.dumps(rows)}")
    for plugin in in_use:
        click.echo(f"  plugin {plugin}")
    for line in [*ready.notes(), *ready.idle]:
        click.echo(f"  {line}")
    for name, stages in ready.stages.items():
        by = f"; images by {ready.images[name]}" if name in ready.images else ""
        click.echo(f"  branch {name}: {stages} stages; {ready.loaded[name]}{by}")
    for name, parameters in ready.corners.items():
        click.echo(f"  {name}: {parameters:,} parameters")
    for name, reason in ready.infeasible.items():
        click.echo(f"  {name}: infeasible: {reason}")
    for name, most in checked.limits.model_dump(exclude_none=True).items():
        click.echo(f"  limit: {name} {most:,.12g}")


@cli.command()
@takes(SPACE, SET, PLUGIN, RESULTS, STORAGE)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(as_json: bool, **options: Any) -> None:
    """How far a study is."""
    study = _existing(**options)
    from .report.status import status as of

    found = of(study)
    if as_json:
        click.echo(json.dumps(found))
    else:
        prefixes = found.pop("prefixes")
        for key, value in found.items():
            click.echo(f"{key:>14}  {value}")
        for each in prefixes:
            what = "{branch}, {stages} of {of} stages, {split} rows".format(**each)
            click.echo("  {}: {place}; {reason}".format(what, **each))


@cli.command()
@takes(SPACE, SET, PLUGIN, RESULTS, STORAGE)
def report(results: str, **options: Any) -> None:
    """Write a study's report, plots and tables again and print the answer."""
    study = _existing(results=results, **options)
    from rich.console import Console

    from .report.files import write_report
    from .report.table import print_answer

    folder = Path(results) / study.name
    write_report(study, folder)
    print_answer(study, Console(), folder)


@cli.command()
@takes(SPACE, SET, PLUGIN, RESULTS, STORAGE, TRACKING, DEVICE, BUDGET)
@click.option(
    "--finalists",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Best trials that are trained again, beside the best of each kind.",
)
@click.option(
    "--seeds",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    help="Fresh seeds on which each is trained.",
)
def confirm(finalists: int, seeds: int, **options: Any) -> None:
    """Train a study's best again on fresh seeds, and open the test split, once."""
    _existing(**{n: options[n] for n in ("space", "overrides", "plugins", "results", "storage")})
    from .confirm import confirm as train_finalists

    train_finalists(finalists, seeds, **options)


def _existing(
    space: str | None, overrides: Texts, plugins: Texts, results: str, storage: str | None
) -> Any:
    checked = read_first(_needed(space), overrides, plugins)
    _cache_in(results)
    from . import study as studies
    from .found import OWNER
    from .report.commands import of_space

    url = storage or studies.storage_url(Path(results), checked.study)
    begun = studies.attributes(url, checked.study)
    if not begun:
        where = masked(storage) if storage else results
        stores = {"storage": masked(storage)} if storage else {}
        begin = of_space("", space or "", overrides, stores, Path(results))
        raise InputError(f"there is no study {checked.study!r} in {where} yet; to begin: {begin}")
    checked.refuse_other(begun.get("space", {}))
    folder = Path(results) / checked.study
    study = studies.open_study(url, checked.study, checked.search, 0, 1, folder)
    owner = folder / OWNER
    if owner.exists() and owner.read_text("ascii") != study.identifier:
        raise InputError(f"--results {results}: {folder} belongs to another study of this name")
    return study


@cli.command()
@click.argument("spec")
@takes(SET, PLUGIN, RESULTS, DEVICE, BUDGET)
def train(spec: str, overrides: Texts, plugins: Texts, results: str, **options: Any) -> None:
    """Train one spec again, such as results/STUDY/best.yaml, and print its metrics, epoch by epoch.

    Nothing is kept of it.
    """
    read_first(spec, overrides, plugins)
    from .launch import train_again

    for epoch in train_again(spec, overrides, Path(results), **options):
        shown = "  ".join(f"{name} {value:.6g}" for name, value in epoch.metrics.items())
        click.echo(f"epoch {epoch.number + 1}  {shown}")


cli.add_command(predict)
cli.add_command(export)


@cli.command()
@takes(RESULTS, TRACKING)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def ui(results: str, tracking_uri: str | None, port: int) -> None:
    """Serve MLflow's page for the results, on http://127.0.0.1:PORT, until Ctrl-C."""
    from .ui import serve_ui

    serve_ui(tracking_uri, Path(results), port)


@cli.command(hidden=True)
def worker() -> None:
    """Be a worker of the process that started this one."""
    for number in SIGNALS:  # until it has begun, there is nothing to save
        signal.signal(number, lambda number, frame: os._exit(130))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    from .launch import work_for

    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is none of ours
    work_for(sys.stdin, out)


@cli.command()
@takes(PLUGIN)
@click.option("--output", default="spaces/schema.json", show_default=True)
def schema(plugins: Texts, output: str) -> None:
    """Write the JSON Schema with which editors complete and check space files."""
    from .plugins import use
    from .space import json_schema

    file = Path(output)
    refuse_in_the_way(file, folder=False)
    use(plugins)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise unwritable(file, error) from None
    click.echo(f"wrote {output}")


def read_first(space: str, overrides: Texts, plugins: Texts) -> Any:
    """Check a space before anything that takes long to import is imported, but by a plugin."""
    from .plugins import use
    from .space import read_space

    use(plugins)
    return read_space(space, overrides)


def _needed(space: str | None) -> str:
    if space is None:
        raise click.UsageError("--space FILE is needed")
    return space


def _cache_in(results: str) -> None:
    if Path(results).is_dir():
        os.environ.setdefault("MPLCONFIGDIR", str(Path(results, ".cache/matplotlib").resolve()))


def _more(known: dict[str, bool]) -> str:
    return "; the same command continues" if known.get("continues", True) else ""


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # OpenMP threads that spin while they wait slow a busy machine down severalfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    known: dict[str, bool] = {}
    try:
        sys.exit(
            cli.main(arguments, prog_name="fuse-search", standalone_mode=False, obj=known) or 0
        )
    except InputError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    except (StudyStopped, StoreUnreachable, TrialError) as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except OSError as error:
        if error.errno not in DISK:
            raise
        place = f"{error.filename}: " if error.filename else ""
        click.echo(f"stopped: {place}{error.strerror}{_more(known)}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (Preempted, KeyboardInterrupt, click.Abort):
        click.echo(f"interrupted{_more(known)}", err=True)
        sys.exit(130)
