"""The libraries that vectors are indexed with: how each builds, opens and searches, on one thread.

All take unit rows and rank by inner product. FAISS is trained on as many rows a list as ours. Its lists are
found by a whole scan of their centroids, or (`ivfhnsw`) by a graph over them, as it advises for many lists.
"""

import os

from pathlib import Path

# Before any library starts its threads.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
# FAISS's wheel brings an OpenBLAS of 2021, which takes a newer Intel for one with SSE3 alone and multiplies
# at a third of the speed: it is told better.
CPU = Path("/proc/cpuinfo")
FLAGS = set(CPU.read_text().split()) if CPU.exists() else set()
if "avx2" in FLAGS:
    os.environ.setdefault("OPENBLAS_CORETYPE", "SKYLAKEX" if "avx512bw" in FLAGS else "HASWELL")

import numpy as np

TRAIN_ROWS_A_LIST = 40
BLOCK_ROWS = 16_384
#: Candidates that are looked at again in float16, for each that is wanted.
REFINES = [3, 10, 50]
#: Of FAISS's graph over centroids.
COARSE_EDGES = 32
VISITS = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
#: What HNSW is usually given; a graph of more edges costs more memory and time.
EDGES, EF_BUILD = 16, 128
EFS = [16, 32, 64, 128, 256, 512, 1024]


class Faiss:
    """IVF or a whole scan, over float32 or int8 codes, rescored in float16 or not."""

    def __init__(self, *, is_ivf: bool, is_int8: bool, is_refined: bool = False, has_graph: bool = False) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self.faiss = faiss
        self.is_ivf, self.is_int8, self.is_refined, self.has_graph = is_ivf, is_int8, is_refined, has_graph
        refines = [{"refine": n} for n in REFINES] if is_refined else [{}]
        # A sweep is of settings that find more and more.
        self.sweeps = [[{"nprobe": n} | refine for n in VISITS] for refine in refines] if is_ivf else [refines]
        self.about = f"faiss {faiss.__version__}, {faiss.get_compile_options().strip()}"
        if hasattr(faiss, "SIMDConfig"):
            self.about += f", runs {faiss.SIMDConfig.get_level_name()}"

    def build(self, base: np.ndarray, lists: int) -> None:
        faiss, dim, by = self.faiss, base.shape[1], self.faiss.METRIC_INNER_PRODUCT
        bits = faiss.ScalarQuantizer.QT_8bit
        coarse = faiss.IndexHNSWFlat(dim, COARSE_EDGES, by) if self.has_graph else faiss.IndexFlatIP(dim)
        match self.is_ivf, self.is_int8:
            case True, True:
                index = faiss.IndexIVFScalarQuantizer(coarse, dim, lists, bits, by)
            case True, False:
                index = faiss.IndexIVFFlat(coarse, dim, lists, by)
            case False, True:
                index = faiss.IndexScalarQuantizer(dim, bits, by)
            case _:
                index = faiss.IndexFlatIP(dim)
        if self.is_ivf:
            index.cp.spherical = True  # its own default for inner products; 10 iterations
            exact = faiss.IndexFlatIP(dim)
            if self.has_graph:
                index.clustering_index = exact
        if self.is_refined:
            index = faiss.IndexRefine(index, faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, by))
        n_train = min(TRAIN_ROWS_A_LIST * lists, len(base))
        sample = np.sort(np.random.default_rng(1).choice(len(base), n_train, replace=False))
        index.train(base[sample].astype(np.float32))
        for start in range(0, len(base), BLOCK_ROWS):
            index.add(base[start : start + BLOCK_ROWS].astype(np.float32))
        self.index = index

    def save(self, path: Path) -> None:
        self.faiss.write_index(self.index, str(path))

    def open(self, path: Path, dim: int, is_mapped: bool) -> None:
        self.index = self.faiss.read_index(str(path), self.faiss.IO_FLAG_MMAP_IFC if is_mapped else 0)

    def use(self, setting: dict[str, int]) -> None:
        faiss = self.faiss
        self.params = None
        if self.is_ivf:
            visits = setting["nprobe"]
            coarse = faiss.SearchParametersHNSW(efSearch=max(32, 2 * visits)) if self.has_graph else None
            self.params = faiss.SearchParametersIVF(nprobe=visits, quantizer_params=coarse)
        if self.is_refined:
            self.params = faiss.IndexRefineSearchParameters(k_factor=setting["refine"], base_index_params=self.params)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.index.search(queries, k, params=self.params)[1]


class Hnswlib:
    """A graph over float32."""

    def __init__(self) -> None:
        import hnswlib

        self.library = hnswlib
        self.sweeps = [[{"ef": n} for n in EFS]]
        self.about = "hnswlib, compiled where it is installed"

    def build(self, base: np.ndarray, lists: int) -> None:
        self.index = self.library.Index("ip", base.shape[1])
        self.index.init_index(len(base), M=EDGES, ef_construction=EF_BUILD)
        for start in range(0, len(base), BLOCK_ROWS):
            self.index.add_items(base[start : start + BLOCK_ROWS].astype(np.float32), num_threads=1)

    def save(self, path: Path) -> None:
        self.index.save_index(str(path))

    def open(self, path: Path, dim: int, is_mapped: bool) -> None:
        if is_mapped:
            raise RuntimeError("hnswlib does not map files")
        self.index = self.library.Index("ip", dim)
        self.index.load_index(str(path))

    def use(self, setting: dict[str, int]) -> None:
        self.index.set_ef(setting["ef"])

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.index.knn_query(queries, k, num_threads=1)[0].astype(np.int64)


class Usearch:
    """A graph over float16."""

    def __init__(self) -> None:
        import usearch
        from usearch.index import Index

        self.kind = Index
        self.sweeps = [[{"ef": n} for n in EFS]]
        self.about = f"usearch {usearch.__version__}"

    def build(self, base: np.ndarray, lists: int) -> None:
        self.index = self.kind(ndim=base.shape[1], metric="ip", dtype="f16", connectivity=EDGES,
                               expansion_add=EF_BUILD)
        for start in range(0, len(base), BLOCK_ROWS):
            rows = np.ascontiguousarray(base[start : start + BLOCK_ROWS])
            self.index.add(np.arange(start, start + len(rows), dtype=np.uint64), rows, threads=1)

    def save(self, path: Path) -> None:
        self.index.save(str(path))

    def open(self, path: Path, dim: int, is_mapped: bool) -> None:
        self.index = self.kind.restore(str(path), view=is_mapped)
        self.about += f", {self.index.hardware_acceleration}"

    def use(self, setting: dict[str, int]) -> None:
        self.index.expansion_search = setting["ef"]

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        return np.atleast_2d(self.index.search(queries, k, threads=1).keys).astype(np.int64)


PEERS = {
    "faiss-ivf-sq8": lambda: Faiss(is_ivf=True, is_int8=True),
    "faiss-ivf-sq8-refine": lambda: Faiss(is_ivf=True, is_int8=True, is_refined=True),
    "faiss-ivfhnsw-sq8": lambda: Faiss(is_ivf=True, is_int8=True, has_graph=True),
    "faiss-ivfhnsw-sq8-refine": lambda: Faiss(is_ivf=True, is_int8=True, is_refined=True, has_graph=True),
    "faiss-ivf-flat": lambda: Faiss(is_ivf=True, is_int8=False),
    "faiss-sq8-flat": lambda: Faiss(is_ivf=False, is_int8=True),
    "faiss-sq8-flat-refine": lambda: Faiss(is_ivf=False, is_int8=True, is_refined=True),
    "faiss-flat": lambda: Faiss(is_ivf=False, is_int8=False),
    "hnswlib": Hnswlib,
    "usearch": Usearch,
}
