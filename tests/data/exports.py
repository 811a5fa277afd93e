"""Loads an export with what it is for, and compares every row with the run's shards.

usage: exports.py RUN [OUT FORMAT frames|clips ROWS_PER_FILE]...

Prints a line an export, with the packages that read it. Those of tests/data/readers-requirements.txt are needed; Lance's own
(pylance) is used where it is installed.
"""

import csv
import glob
import importlib.util
import json
import math
import pathlib
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

RUN = pathlib.Path(sys.argv[1])


def shards(of):
    """The rows that the ledger lists: columns by name, without vectors, and the vectors as stored."""
    # A checksum follows the JSON.
    lines = [json.JSONDecoder().raw_decode(line)[0] for line in (RUN / "ledger").read_text().splitlines()]
    numbers = [line["shard"]["shard"] for line in lines if "shard" in line]
    table = pa.concat_tables(pq.read_table(RUN / of / f"shard-{n:05}.parquet") for n in numbers)
    lists = table["embedding"].combine_chunks()
    vectors = lists.values.to_numpy().reshape(len(lists), -1)
    kept = [f.name for f in table.schema if not pa.types.is_fixed_size_list(f.type)]
    return {name: table[name].to_pylist() for name in kept}, vectors, len(numbers)


def same(got, wanted, what):
    assert got == wanted, f"{what}: {got[:3]} for {wanted[:3]}, {len(got)} for {len(wanted)} values"


def same_vectors(got, dtype):
    got = np.asarray(got)
    assert got.dtype == dtype and got.shape == VECTORS.shape, (got.dtype, got.shape, VECTORS.shape)
    assert np.array_equal(got, VECTORS.astype(dtype)), "vectors differ"


def names(pattern):
    return [str(p.relative_to(OUT)) for p in sorted(OUT.glob(pattern))]


def only_files(wanted):
    found = sorted(str(p.relative_to(OUT)) for p in OUT.rglob("*") if p.is_file())
    same(found, sorted(wanted), "files")


def renamed(taken):
    """The columns as an export has them whose format has columns of its own."""
    return {("manifest_" + k if k in taken else k): v for k, v in ROWS.items()}


def clip_retrieval():
    from embedding_reader import EmbeddingReader
    import pandas as pd

    # As clip_retrieval/clip_inference/writer.py numbers its files.
    width = int(math.log10(N_FILES)) + 1
    files = [str(n).zfill(width) for n in range(N_FILES)]
    only_files([f"img_emb/img_emb_{n}.npy" for n in files] + [f"metadata/metadata_{n}.parquet" for n in files])
    same_vectors(np.concatenate([np.load(OUT / f"img_emb/img_emb_{n}.npy") for n in files]), VECTORS.dtype)
    wanted = renamed({"image_path", "caption"})
    wanted["image_path"] = wanted.pop("path")
    wanted["caption"] = [label or "" for label in wanted["label"]]

    # Vectors and metadata together, as training and filtering jobs read them.
    reader = EmbeddingReader(
        embeddings_folder=str(OUT / "img_emb"),
        metadata_folder=str(OUT / "metadata"),
        meta_columns=list(wanted),
        file_format="parquet_npy",
    )
    assert (reader.count, reader.dimension) == (N, DIM)
    seen = 0
    for vectors, meta in reader(batch_size=7, show_progress=False):
        assert np.array_equal(vectors, VECTORS[seen : seen + len(vectors)].astype("float32"))
        for name, column in wanted.items():
            got = [None if v is None or v != v else v for v in meta[name]]
            same(got, column[seen : seen + len(vectors)], name)
        seen += len(vectors)
    assert seen == N

    # Vectors alone, as autofaiss (and so `clip-retrieval index`) reads them.
    reader = EmbeddingReader(embeddings_folder=str(OUT / "img_emb"), file_format="npy")
    got = np.concatenate([v for v, _ in reader(batch_size=N, show_progress=False)])
    assert np.array_equal(got, VECTORS.astype("float32"))

    # Metadata alone, as ParquetMetadataProvider of clip_retrieval/clip_back.py reads them.
    frame = pd.concat(pd.read_parquet(f) for f in sorted((OUT / "metadata").glob("*.parquet")))
    assert list(frame.columns)[:2] == ["image_path", "caption"], list(frame.columns)
    for row in range(N):
        got = frame[row : row + 1][["image_path", "caption"]].to_dict(orient="records")[0]
        same([got["image_path"], got["caption"]], [wanted["image_path"][row], wanted["caption"][row]], "row")
    return ["embedding-reader", "pandas", "numpy"]


def npy():
    only_files(["embeddings.npy", "rows.csv"])
    same_vectors(np.load(OUT / "embeddings.npy", mmap_mode="r"), VECTORS.dtype)
    with open(OUT / "rows.csv", newline="", encoding="utf-8") as file:
        reader = csv.reader(file, strict=True)
        header, *rows = list(reader)
    same(header, list(ROWS), "header")

    def text(value):
        return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    for i, name in enumerate(header):
        same([row[i] for row in rows], [text(v) for v in ROWS[name]], name)
    return ["numpy"]


def faiss_input():
    import faiss
    from embedding_reader import EmbeddingReader

    width = len(str(N_FILES))
    kinds = [("embeddings", "npy"), ("ids", "npy"), ("rows", "parquet")]
    only_files(f"{k}/{k}_{n:0{width}}.{e}" for k, e in kinds for n in range(N_FILES))
    vectors = np.concatenate([np.load(OUT / f) for f in names("embeddings/*.npy")])
    same_vectors(vectors, np.float32)
    ids = np.concatenate([np.load(OUT / f) for f in names("ids/*.npy")])
    assert ids.dtype == np.int64 and len(set(ids.tolist())) == N
    clips, frames = ROWS["clip_id"], ROWS.get("frame_index")
    same(ids.tolist(), [c << 32 | f for c, f in zip(clips, frames)] if frames else clips, "ids")
    table = pa.concat_tables(pq.read_table(OUT / f) for f in names("rows/*.parquet"))
    wanted = renamed({"id"}) | {"id": ids.tolist()}
    same(sorted(table.column_names), sorted(wanted), "columns")
    for name, column in wanted.items():
        same(table[name].to_pylist(), column, name)

    index = faiss.IndexIDMap2(faiss.IndexFlatIP(DIM))
    # Mapped and added file by file, with nothing converted.
    for x, i in zip(names("embeddings/*.npy"), names("ids/*.npy")):
        index.add_with_ids(np.load(OUT / x, mmap_mode="r"), np.load(OUT / i))
    _, found = index.search(vectors, 1)
    row_of = {id: row for row, id in enumerate(ids.tolist())}
    for row, id in enumerate(found[:, 0].tolist()):
        # Frames may be equal: the nearest has the same score.
        assert np.isclose(vectors[row_of[id]] @ vectors[row], vectors[row] @ vectors[row], atol=1e-6), row
        assert np.array_equal(index.reconstruct(id), vectors[row_of[id]])

    # As autofaiss reads the folder.
    reader = EmbeddingReader(embeddings_folder=str(OUT / "embeddings"), file_format="npy")
    got = np.concatenate([v for v, _ in reader(batch_size=N, show_progress=False)])
    assert np.array_equal(got, vectors)
    return ["faiss", "embedding-reader", "numpy"]


def lance_input():
    import lancedb

    only_files(f"rows-{n:05}.parquet" for n in range(N_FILES))
    wanted = renamed({"vector"})
    # Lance refuses dots in names; here the name without them is another column's.
    if "a.dotted name" in wanted:
        wanted["manifest_a_dotted name"] = wanted.pop("a.dotted name")

    def check(table, what):
        same(sorted(table.column_names), sorted([*wanted, "vector"]), what)
        assert table.schema.field("vector").type == pa.list_(pa.float32(), DIM), table.schema
        for name, column in wanted.items():
            same(table[name].to_pylist(), column, f"{what}: {name}")
        same_vectors(np.array(table["vector"].to_pylist(), dtype=np.float32), np.float32)

    check(pq.read_table(OUT), "pyarrow")
    read = ["lancedb", "pyarrow"]
    with tempfile.TemporaryDirectory() as folder:
        data = pa.dataset.dataset(OUT, format="parquet")
        db = lancedb.connect(folder)
        table = db.create_table("rows", data=data.to_batches(), schema=data.schema)
        check(table.to_arrow(), "lancedb")
        # The column to search is found by its name and type.
        nearest = table.search(VECTORS[0].astype("float32")).limit(1).to_list()[0]
        assert np.allclose(nearest["vector"], VECTORS[0].astype("float32"), atol=1e-6)
        if importlib.util.find_spec("lance"):
            import lance

            written = lance.write_dataset(data, f"{folder}/direct.lance")
            check(written.to_table(), "lance")
            read.append("lance")
    return read


def webdataset():
    import webdataset as wds

    files = [f"{n:05}.tar" for n in range(N_FILES)]
    only_files(files)
    samples = []
    for number, name in enumerate(files):
        own = list(wds.WebDataset(str(OUT / name), shardshuffle=False).decode())
        assert len(own) == min(PER_FILE, N - number * PER_FILE), (name, len(own))
        samples.extend(own)
    keys = [sample["__key__"] for sample in samples]
    clips, frames = ROWS["clip_id"], ROWS.get("frame_index")
    same(keys, [f"{c:09}-{f:07}" for c, f in zip(clips, frames)] if frames else [f"{c:09}" for c in clips], "keys")
    same_vectors(np.stack([sample["npy"] for sample in samples]), VECTORS.dtype)
    same([sample.get("txt") for sample in samples], ROWS["label"], "labels")
    for row, sample in enumerate(samples):
        same([sample["json"]], [{name: column[row] for name, column in ROWS.items()}], sample["__key__"])
        assert {k for k in sample if not k.startswith("__")} <= {"npy", "json", "txt"}, list(sample)
    return ["webdataset", "numpy"]


CHECKS = {
    "clip-retrieval": clip_retrieval,
    "npy": npy,
    "faiss-input": faiss_input,
    "lance-input": lance_input,
    "webdataset": webdataset,
}
TABLES = {of: shards(of) for of in ("frames", "clips")}
arguments = iter(sys.argv[2:])
for OUT, FORMAT, TABLE, PER_FILE in zip(*[arguments] * 4, strict=True):
    OUT, PER_FILE = pathlib.Path(OUT), int(PER_FILE)
    ROWS, VECTORS, N_SHARDS = TABLES[TABLE]
    N, DIM = VECTORS.shape
    N_FILES = math.ceil(N / PER_FILE)
    assert N_SHARDS > 1, "the run is to have several shards"
    try:
        used = ", ".join(CHECKS[FORMAT]())
    except Exception as e:
        e.add_note(f"in {OUT}")
        raise
    print(f"{FORMAT}: {N} {TABLE} of {VECTORS.dtype} in {N_FILES} parts are those of {N_SHARDS} shards ({used})")
