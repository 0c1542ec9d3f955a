"""ONNX Runtime at work: `MODEL THREADS`; each line on stdin is answered with one of JSON.

The answer says how long a picture took, and the process's peak memory.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime as ort

from convert.support.measure import peak_rss_bytes


def main() -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(sys.argv[2])
    # Between pictures, threads that wait actively would take the other side's processor.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    start = time.perf_counter()
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    print(json.dumps({"load_ms": (time.perf_counter() - start) * 1000}), flush=True)
    (pixels,) = session.get_inputs()
    rng = np.random.default_rng(0)
    for _ in sys.stdin:
        picture = rng.standard_normal([1 if isinstance(n, str) else n for n in pixels.shape])
        feed = {pixels.name: picture.astype(np.float32)}
        start, computed = time.perf_counter(), time.process_time()
        session.run(None, feed)
        ms = (time.perf_counter() - start) * 1000
        answer = {"ms": ms, "processor_ms": (time.process_time() - computed) * 1000}
        print(json.dumps(answer | {"peak_rss_bytes": peak_rss_bytes()}), flush=True)


if __name__ == "__main__":
    main()
