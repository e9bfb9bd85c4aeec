"""Tables of cells from CSV and Parquet files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest

from fuse_search.data.decoded import Fault
from fuse_search.data.table import LONGEST, read_table
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


HUGE = "a,b\n1,2\n" + "x" * (LONGEST + 1) + ",4\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"rows\.csv: a header and at least one row are needed"),
        ("a,b\n\n", r"rows\.csv: a header and at least one row are needed"),
        ("a,b,a\n1,2,3\n", r"rows\.csv:1: two columns are called 'a'"),
        (",a\n0,1\n", r"rows\.csv:1: every column needs a name .*index=False.* column 1 has none"),
        ("a;b\n1;2\n", r"rows\.csv:1: save it with commas between cells, found 'a;b'"),
        ('a,b\n1,2\n3,"x\n4,5\n', r"rows\.csv:3: can't be read as CSV: unexpected end of data"),
        (HUGE, r"rows\.csv:3: can't be read as CSV: field larger than field limit"),
        (
            b"a,b\n1,2\n" * 9999 + "3,café\n4,5\n".encode("cp1252"),
            r"rows\.csv:19999: must be UTF-8 text, found the byte 0xe9; it may be Windows-1252 or",
        ),
        ("a,b\n1,2\n".encode("utf-16"), r"rows\.csv:1: .*, found the byte 0xff; it may be UTF-16"),
    ],
)
def test_what_is_no_table_is_told_once(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        read_table(write(tmp_path, text))
    assert "\n" not in str(told.value)


def test_parquet_has_typed_cells(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    columns = {"n": [1, 2, 30], "x": [0.5, None, 2.0], "t": ["007", " ", None]}
    columns["b"] = [True, False, None]
    columns["file"] = [{"bytes": b"\x89PNG", "path": "a.png"}, {"bytes": None, "path": "b"}, None]
    pd.DataFrame(columns).to_parquet(file)
    table = read_table(file)
    assert {name: list(cells) for name, cells in table.columns.items()} == {
        "n": ["1", "2", "30"],
        "x": ["0.5", None, "2"],  # what pandas makes of whole numbers where one is missing
        "b": ["True", "False", None],
        "t": ["007", None, None],
        "file": [b"\x89PNG", "b", None],
    }
    assert table.place(2) == f"{file}: row 3"


def test_parquet_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.parquet: can't be read as Parquet: "):
        read_table(write(tmp_path, "a,b\n1,2\n", "rows.parquet"))
    lists = tmp_path / "lists.parquet"
    pd.DataFrame({"v": [["a"], ["b"]]}).to_parquet(lists)
    with pytest.raises(InputError, match=r"lists\.parquet: v: cells must be text.*\['a'\]"):
        read_table(lists)


def test_columns_that_are_not_used_are_not_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [b"x", b"y"], "c": ["x" * 200_000, None]})
    frame.to_csv(file := tmp_path / "rows.csv", index=False)
    frame.to_parquet(typed := tmp_path / "rows.parquet")
    for table in (read_table(file, ["c", "d"]), read_table(typed, ["c", "d"])):
        assert {name: list(cells) for name, cells in table.columns.items()} == {
            "c": ["x" * 200_000, None]
        }
        with pytest.raises(InputError, match=r"k: .*no column 'aa'; did you mean 'a'"):
            table.column("aa", "k")
        assert len(read_table(Path(table.name), [])) == 2


def test_files_in_parquet_are_read_by_groups_of_rows(tmp_path: Path) -> None:
    file, draw = tmp_path / "rows.parquet", np.random.default_rng(0)
    wanted = [draw.bytes(100_000) for _ in range(40)]
    frame = pd.DataFrame(
        {"x": range(40), "file": [{"bytes": each, "path": None} for each in wanted]}
    )
    frame.to_parquet(file, row_group_size=8, compression=None)
    before = pyarrow.total_allocated_bytes()
    cells = read_table(file).columns["file"]
    assert len(cells) == 40 and list(cells) == wanted
    assert cells[17] == wanted[17] and cells[6:9] == wanted[6:9]
    assert 8e5 < pyarrow.total_allocated_bytes() - before < 2e6
