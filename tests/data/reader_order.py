#!/usr/bin/env python3
"""The samples of `pecan-data samples` against another implementation of Megatron's reader order.

Written from the description of the formats and of the order alone, with numpy's own generator:
splits of sequences, epochs, the three indices, blends. Arguments: the program, [number of cases].
"""

import itertools
import json
import math
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

import numpy

TYPES = {"u16": (8, numpy.uint16), "i32": (4, numpy.int32)}


def write_dataset(prefix, sequences, documents, kind):
    code, dtype = TYPES[kind]
    lengths = numpy.array([len(s) for s in sequences], dtype="<i4")
    ends = numpy.cumsum(lengths, dtype=numpy.int64) * numpy.dtype(dtype).itemsize
    pointers = numpy.concatenate([[0], ends[:-1]]).astype("<i8")
    with open(f"{prefix}.bin", "wb") as tokens:
        for sequence in sequences:
            tokens.write(numpy.array(sequence, dtype=dtype).tobytes())
    with open(f"{prefix}.idx", "wb") as index:
        index.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(documents)))
        index.write(lengths.tobytes() + pointers.tobytes() + numpy.array(documents, "<i8").tobytes())


def random_dataset(draw, prefix):
    sequences, documents = [], [0]
    for _ in range(draw.randint(3, 40)):
        for _ in range(draw.randint(1, 3)):
            sequences.append([draw.randrange(60000) for _ in range(draw.randint(1, 50))])
        documents.append(len(sequences))
    write_dataset(prefix, sequences, documents, draw.choice(["u16", "i32"]))
    return sequences


def split_sequences(sequences, split, which):
    shares = [float(share) for share in split.split(",")] if split else [1.0]
    shares += [0.0] * (3 - len(shares))
    total = sum(shares)
    bounds = [0.0] + list(itertools.accumulate(share / total for share in shares))
    first, last = (round(bounds[which + i] * float(len(sequences))) for i in (0, 1))
    return list(range(first, last))


class Dataset:
    """One dataset's samples, by the three indices."""

    def __init__(self, sequences, chosen, length, wanted, seed):
        self.sequences, self.length = sequences, length
        generator = numpy.random.RandomState(seed)
        per_epoch = sum(len(sequences[s]) for s in chosen)
        epochs = 1
        while epochs * per_epoch < wanted * length + 1:
            epochs += 1
        separate = False  # whether the last epoch is shuffled on its own
        if epochs > 1:
            before = ((epochs - 1) * per_epoch - 1) // length
            separate = wanted - before < int(0.80 * ((per_epoch - 1) // length))

        def shuffled(times):
            index = numpy.array(chosen * times, dtype=numpy.int32)
            generator.shuffle(index)
            return index

        self.separate = separate
        if separate:
            self.documents = numpy.concatenate([shuffled(epochs - 1), shuffled(1)])
        else:
            self.documents = shuffled(epochs)
        self.count = (epochs * per_epoch - 1) // length
        if separate:
            head = numpy.arange(before, dtype=numpy.uint32)
            tail = numpy.arange(before, self.count, dtype=numpy.uint32)
            generator.shuffle(head)
            generator.shuffle(tail)
            self.order = numpy.concatenate([head, tail])
        else:
            self.order = numpy.arange(self.count, dtype=numpy.uint32)
            generator.shuffle(self.order)
        # All tokens in document order: a sample is a window of length + 1 that starts at the last
        # token of the window before it.
        self.stream = list(itertools.chain.from_iterable(sequences[d] for d in self.documents))

    def sample(self, i):
        first = int(self.order[i]) * self.length
        window = self.stream[first:first + self.length + 1]
        return window[:-1], window[1:]


def blend(weights, size):
    counts, order = [0] * len(weights), []
    for t in range(size):
        errors = [w * max(float(t), 1.0) - c for w, c in zip(weights, counts)]
        chosen = errors.index(max(errors))
        order.append((chosen, counts[chosen]))
        counts[chosen] += 1
    return order


def expected_samples(parts, split, which, length, wanted, seed):
    total = sum(weight for weight, _ in parts)
    weights = [weight / total for weight, _ in parts]
    datasets = []
    for (_, sequences), weight in zip(parts, weights):
        mine = wanted if len(parts) == 1 else math.ceil(math.ceil(wanted * weight) * 1.005)
        datasets.append(Dataset(sequences, split_sequences(sequences, split, which), length, mine, seed))
    if len(parts) == 1:
        return [datasets[0].sample(i) for i in range(datasets[0].count)], datasets
    return [datasets[d].sample(i) for d, i in blend(weights, wanted)], datasets


def main():
    program = sys.argv[1]
    cases = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    draw = random.Random(20)
    seen = {"blends": 0, "splits": 0, "several epochs": 0, "last epoch apart": 0}
    with tempfile.TemporaryDirectory(prefix="pecan-reader-") as folder:
        for case in range(cases):
            parts, arguments = [], []
            for i in range(draw.choice([1, 1, 2, 3])):
                prefix = pathlib.Path(folder) / f"set-{case}-{i}"
                weight = draw.choice([1.0, 0.3, 2.5, draw.random() + 0.01])
                parts.append((weight, random_dataset(draw, prefix)))
                arguments += [repr(weight), str(prefix)]
            if len(parts) == 1:
                arguments = arguments[1:]
            split, which = draw.choice([("", 0), ("90,10,0", 0), ("1,1,1", 1), ("7,2,1", 0), ("60.5,39.5", 1)])
            if any(not split_sequences(sequences, split, which) for _, sequences in parts):
                split, which = "", 0
            length, seed = draw.randint(1, 60), draw.randrange(2**32)
            wanted = draw.randint(1, 150)
            expected, datasets = expected_samples(parts, split, which, length, wanted, seed)
            output = subprocess.run(
                [program, "samples", "--data-path", *arguments, "--split", split, "--which",
                 ["train", "valid", "test"][which], "--seq-length", str(length), "--num-samples",
                 str(wanted), "--seed", str(seed), "--begin", "0", "--end", str(len(expected))],
                check=True, capture_output=True, text=True).stdout
            records = [json.loads(line) for line in output.splitlines()]
            got = [(record["tokens"], record["labels"]) for record in records]
            assert got == [(list(t), list(l)) for t, l in expected], (
                f"case {case}: {len(parts)} datasets, split '{split}' {which}, length {length}, "
                f"{wanted} samples, seed {seed}: the samples differ")
            seen["blends"] += len(parts) > 1
            seen["splits"] += split != ""
            seen["last epoch apart"] += any(d.separate for d in datasets)
            seen["several epochs"] += any(len(d.documents) > len(set(d.documents)) for d in datasets)
    assert all(seen.values()), seen
    print(f"{cases} configurations agree: {seen}")


if __name__ == "__main__":
    main()
