"""Checks a shard with programs that know nothing of Pecan: h5py and h5ls.

usage: read_shard.py TEST_PROGRAM H5LS FILE
TEST_PROGRAM writes the shard to FILE. Prints "skipped" (a counted skip) where h5py is not there.
"""

import os
import subprocess
import sys

try:
    import h5py
    import numpy as np
except ImportError as error:
    print(f"skipped: {error}; install python3-h5py")
    sys.exit(0)

program, h5ls, path = sys.argv[1:4]
subprocess.run([program, "[.write-example]"], check=True, env=dict(os.environ, PECAN_WRITE_SHARD=path), stdout=subprocess.DEVNULL)

floats = (np.arange(30, dtype=np.float32) * 0.25 - 3.0).reshape(6, 5)
expected = {
    "model.norm.weight/master/6_0": (floats, [12, 5], [6, 0]),
    "model.norm.weight/update_count": (np.int64(2**53 + 1), [], []),
    "model.norm.weight/weight": (floats, [6, 5], [0, 0]),
}

with h5py.File(path, "r") as shard:
    found = []
    shard.visititems(lambda name, node: found.append(name) if isinstance(node, h5py.Dataset) else None)
    assert sorted(found) == sorted(expected), found
    for name, (values, global_shape, offset) in expected.items():
        dataset = shard[name]
        assert dataset.shape == values.shape, (name, dataset.shape)
        assert np.array_equal(dataset[()], values), (name, dataset[()])
        assert sorted(dataset.attrs) == ["global_shape", "offset", "step", "xxh3"], list(dataset.attrs)
        assert list(dataset.attrs["global_shape"]) == global_shape, name
        assert list(dataset.attrs["offset"]) == offset, name
        assert dataset.attrs["step"] == 120 and dataset.attrs["step"].dtype == np.int64, name
        assert dataset.attrs["xxh3"].dtype == np.uint64, name
    bf16 = shard["model.norm.weight/weight"].id.get_type()
    assert bf16.get_size() == 2 and bf16.get_fields() == (15, 7, 8, 0, 7) and bf16.get_ebias() == 127

if not h5ls.endswith("NOTFOUND"):
    listing = subprocess.run([h5ls, "-r", path], check=True, capture_output=True, text=True).stdout
    lines = [line.split(maxsplit=1) for line in listing.splitlines()]
    assert ["/model.norm.weight/master/6_0", "Dataset {6, 5}"] in lines, listing
    assert ["/model.norm.weight/update_count", "Dataset {SCALAR}"] in lines, listing
    print("h5py and h5ls agree")
else:
    print("h5py agrees; h5ls is not there")
