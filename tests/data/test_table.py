"""Tables of cells from CSV and Parquet files."""

from pathlib import Path

import pandas as pd
import pytest

from fuse_search.data.decoded import Fault
from fuse_search.data.table import read_table
from fuse_search.errors import InputError


def write(folder: Path, text: str | bytes, name: str = "rows.csv") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_cells_are_text_and_empty_ones_none(tmp_path: Path) -> None:
    text = '\ufeff name , age\n\n" Ann, Lee ",007\nBo, \n"two\nlines","say ""hi"""\nlast,1\n'
    table = read_table(write(tmp_path, text))
    assert {name: list(cells) for name, cells in table.columns.items()} == {
        "name": ["Ann, Lee", "Bo", "two\nlines", "last"],
        "age": ["007", None, 'say "hi"', "1"],
    }
    file = tmp_path / "rows.csv"
    assert [table.place(row) for row in range(4)] == [f"{file}:{n}" for n in (3, 4, 5, 7)]
    assert table.faults == ()


def test_ragged_lines_are_rows_with_a_fault(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a,b\n1,2\n3\n4,5,6\n7,8\n"))
    assert list(table.columns["a"]) == ["1", None, None, "7"]
    assert table.faults == (
        Fault(1, "", "1 cells, but the header has 2"),
        Fault(2, "", "3 cells, but the header has 2"),
    )


HUGE = "a,b\n1,2\n" + "x" * 200_000 + ",4\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"rows\.csv: a header and at least one row are needed"),
        ("a,b\n\n", r"rows\.csv: a header and at least one row are needed"),
        ("a,b,a\n1,2,3\n", r"rows\.csv:1: two columns are called 'a'"),
        (",a\n0,1\n", r"rows\.csv:1: every column needs a name .*index=False.* column 1 has none"),
        ("a;b\n1;2\n", r"rows\.csv:1: cells must be separated by commas, found 'a;b'"),
        ('a,b\n1,2\n3,"x\n4,5\n', r"rows\.csv:3: can't be read as CSV: unexpected end of data"),
        (HUGE, r"rows\.csv:3: can't be read as CSV: field larger than field limit"),
        (b"a,b\n1,\xff\n", r"rows\.csv: must be UTF-8 text: invalid start byte"),
    ],
)
def test_what_is_no_table_is_told_once(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        read_table(write(tmp_path, text))
    assert "\n" not in str(told.value)


def test_parquet_has_typed_cells(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    columns = {"n": [1, 2, 30], "x": [0.5, None, 2.0], "t": ["007", " ", None]}
    columns["file"] = [{"bytes": b"\x89PNG", "path": "a.png"}, {"bytes": None, "path": "b"}, None]
    pd.DataFrame(columns).to_parquet(file)
    table = read_table(file)
    assert {name: list(cells) for name, cells in table.columns.items()} == {
        "n": ["1", "2", "30"],
        "x": ["0.5", None, "2.0"],
        "t": ["007", None, None],
        "file": [b"\x89PNG", "b", None],
    }
    assert table.place(2) == f"{file}: row 3"


def test_parquet_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.parquet: can't be read as Parquet: "):
        read_table(write(tmp_path, "a,b\n1,2\n", "rows.parquet"))
    lists = tmp_path / "lists.parquet"
    pd.DataFrame({"v": [[1.0], [2.0]]}).to_parquet(lists)
    with pytest.raises(InputError, match=r"lists\.parquet: v: cells must be text.*\[1\.0\]"):
        read_table(lists)
