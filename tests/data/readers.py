"""Reads a run's tables as people do, and compares every value with what is expected.

python tests/data/readers.py RUN EXPECTED.json, made by tests/readers.rs. The reads are what README shows;
vectors are compared bit by bit, as 32-bit floats, which hold 16-bit ones exactly.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import datasets
import duckdb
import numpy as np
import pandas
import polars
import pyarrow.dataset
import pyarrow.parquet


def by_pyarrow(folder):
    table = pyarrow.dataset.dataset(folder, format="parquet").to_table()
    return {name: arrow_values(table[name]) for name in table.column_names}


def by_duckdb(folder):
    answer = duckdb.sql(f"select * from read_parquet('{folder}/*.parquet')")
    columns = answer.columns
    rows = answer.fetchall()
    return {name: [row[i] for row in rows] for i, name in enumerate(columns)}


def by_polars(folder):
    frame = polars.scan_parquet(f"{folder}/*.parquet").collect()
    read = lambda column: column.to_numpy() if column.dtype.is_nested() else column.to_list()
    return {name: read(frame[name]) for name in frame.columns}


def by_pandas(folder):
    frame = pandas.read_parquet(folder)
    return {name: [None if is_gap(v) else v for v in frame[name]] for name in frame.columns}


def by_datasets(folder):
    files = sorted(str(p) for p in Path(folder).glob("*.parquet"))
    with tempfile.TemporaryDirectory() as cache:
        rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
        arrays = rows.with_format("numpy")
        kinds = rows.features
        of = {name: rows if isinstance(kinds[name], datasets.Value) else arrays for name in kinds}
        return {name: list(of[name][name]) for name in rows.column_names}


def arrow_values(column):
    if not pyarrow.types.is_fixed_size_list(column.type):
        return column.to_pylist()
    width = column.type.list_size
    return np.concatenate([c.flatten().to_numpy().reshape(-1, width) for c in column.chunks])


def is_gap(value):
    return value is None or (isinstance(value, float) and np.isnan(value))


def in_order(columns):
    """The columns as lists or arrays, by clip and frame."""
    keys = [np.asarray(columns[k]) for k in ("frame_index", "clip_id") if k in columns]
    order = np.lexsort(keys)
    return {name: [values[i] for i in order] for name, values in columns.items()}


def compare(reader, table, found, wanted):
    assert list(found) == [c["name"] for c in wanted], f"{reader}, {table}: columns {list(found)}"
    found = in_order(found)
    for column in wanted:
        name, ours = column["name"], found[column["name"]]
        if "vectors" in column:
            theirs = np.fromfile(column["vectors"], np.float32).reshape(-1, column["dim"])
            ours = np.stack([np.asarray(v, np.float32) for v in ours])
            same = ours.shape == theirs.shape and (ours.view(np.uint32) == theirs.view(np.uint32)).all()
        else:
            theirs = column["values"]
            same = [v.item() if isinstance(v, np.generic) else v for v in ours] == theirs
        assert same, f"{reader}, {table}.{name}: {ours[:2]}, expected {theirs[:2]}"
    print(f"{reader}: {table}, {len(wanted)} columns, {len(found['clip_id'])} rows")


def main():
    run, expected = sys.argv[1:]
    datasets.disable_progress_bars()
    for table, wanted in json.loads(Path(expected).read_text()).items():
        folder = f"{run}/{table}"
        for read in (by_pyarrow, by_duckdb, by_polars, by_pandas, by_datasets):
            compare(read.__name__.removeprefix("by_"), table, read(folder), wanted)
        first = sorted(Path(folder).glob("*.parquet"))[0]
        keys = duckdb.sql(f"select key::varchar, value::varchar from parquet_kv_metadata('{first}')").fetchall()
        assert ("clipmill.schema_version", "1") in keys, f"{first}: metadata {keys}"
        assert pyarrow.parquet.read_schema(first).metadata[b"clipmill.schema_version"] == b"1"


if __name__ == "__main__":
    main()
