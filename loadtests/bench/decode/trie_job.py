"""Sorts sids and builds their trie: `python -m` this module with a job's file; see `trie`.

The last line of output is JSON.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.bench.decode.child import resident_bytes
from loadtests.bench.decode.synthetic import sorted_sids
from service.catalog import build_trie


def measure(job: dict[str, Any]) -> dict[str, float]:
    """Seconds, bytes of the arrays, and the process's peak before and after."""
    sids_NL = np.load(job["sids"])
    before_bytes = resident_bytes()["peak"]
    sort_s, build_s = [], []
    for _ in range(job["num_rounds"]):
        started_s = time.perf_counter()
        rows_NL = sorted_sids(sids_NL)
        sorted_s = time.perf_counter()
        trie = build_trie(rows_NL)
        build_s.append(time.perf_counter() - sorted_s)
        sort_s.append(sorted_s - started_s)
        # The next round starts as this one did.
        sids_bytes = rows_NL.nbytes
        trie_bytes = sum(array.nbytes for array in (*trie.child_begin, *trie.child_code, *trie.child_row))
        del rows_NL, trie
    return {
        "sort_s": statistics.median(sort_s),
        "build_s": statistics.median(build_s),
        "sids_bytes": sids_bytes,
        "trie_bytes": trie_bytes,
        "before_bytes": before_bytes,
        "peak_bytes": resident_bytes()["peak"],
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text()))))
