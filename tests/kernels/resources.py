#!/usr/bin/env python3
"""What ptxas gave each kernel: registers, shared memory, and local memory, where it spills.

Reads the machine code in the library of kernels (or in a fat binary), prints a table, and fails where a
kernel has more registers than its limit, or local memory, or more shared memory than kernels/launch.cuh
leaves to what they declare, or where an architecture is missing.
"""
import argparse
import re
import struct
import subprocess
import sys

FATBIN_MAGIC = 0xBA55ED50
KIND_PTX, KIND_ELF = 1, 2
FORMAT_SIZED = 4  # of an attribute: its value is the number of bytes that follow
ATTRIBUTE_STACK, ATTRIBUTE_REGISTERS = 0x12, 0x2F  # the stack of a kernel and all that it calls

# Registers a thread; the first pattern that fits a kernel's name counts.
LIMITS = [
    (r"attention_dkv_kernel", 255),
    (r"attention_(forward|dq)_kernel", 255),
    (r"block_sparse_(sdd|dsd|weight)_kernel", 128),
    (r"adamw_kernel<double>", 96),
    (r"router_(forward|backward)_kernel<double>", 80),
    (r"", 72),
]
SHARED_BYTES = 1024
RESERVED_SHARED_BYTES = 1024  # of a block, since sm_90: the system's, in front of the kernel's own


def sections(elf):
    """Names and (offset, size) of the sections of a 64-bit ELF file."""
    table, = struct.unpack_from("<Q", elf, 40)
    entry_size, count, names_index = struct.unpack_from("<HHH", elf, 58)
    entries = [struct.unpack_from("<IIQQQQ", elf, table + i * entry_size) for i in range(count)]
    names = entries[names_index][4]
    return {text(elf, names + entry[0]): (entry[4], entry[5]) for entry in entries}


def text(data, offset):
    return data[offset:data.index(b"\0", offset)].decode()


def entries_of(fatbin):
    """(kind, architecture, payload) of everything in a fat binary."""
    position = 0
    while position + 16 <= len(fatbin):
        magic, _, header, size = struct.unpack_from("<IHHQ", fatbin, position)
        if magic != FATBIN_MAGIC:
            position += 8  # padding between translation units
            continue
        entry, end = position + header, position + header + size
        while entry < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", fatbin, entry)
            architecture, = struct.unpack_from("<I", fatbin, entry + 28)
            yield kind, architecture, fatbin[entry + header:entry + header + size]
            entry += header + size
        position = end


def kernels_of(cubin):
    """Mangled name -> attributes of each kernel, and the bytes of shared memory that it declares."""
    found = sections(cubin)
    symbols, strings = found[".symtab"][0], found[".strtab"][0]
    start, size = found[".nv.info"]
    kernels = {}
    position, end = start, start + size
    while position < end:
        form, attribute, value = struct.unpack_from("<BBH", cubin, position)
        position += 4
        if form != FORMAT_SIZED:
            continue
        if attribute in (ATTRIBUTE_STACK, ATTRIBUTE_REGISTERS):
            symbol, number = struct.unpack_from("<II", cubin, position)
            name, = struct.unpack_from("<I", cubin, symbols + 24 * symbol)
            kernels.setdefault(text(cubin, strings + name), {})[attribute] = number
        position += value
    reserved = RESERVED_SHARED_BYTES if ".nv.shared.reserved.0" in found else 0
    return {name: (attributes, max(found.get(".nv.shared." + name, (0, 0))[1] - reserved, 0))
            for name, attributes in kernels.items() if ATTRIBUTE_REGISTERS in attributes}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary", help="libpecan_cuda.so, or what nvcc -fatbin writes")
    parser.add_argument("--architectures", default="90-real",
                        help="what must be there, as CMake names it: 90-real;100-virtual")
    options = parser.parse_args()
    with open(options.binary, "rb") as file:
        data = file.read()
    if data[:4] == b"\x7fELF":
        start, size = sections(data)[".nv_fatbin"]
        data = data[start:start + size]

    rows, present, units = [], set(), 0
    for kind, architecture, payload in entries_of(data):
        present.add(f"{architecture}-{'virtual' if kind == KIND_PTX else 'real'}")
        if kind == KIND_ELF:
            units += 1
            rows += [(architecture, name, *given) for name, given in kernels_of(payload).items()]
    names = subprocess.run(["c++filt", "--no-params"], input="\n".join(row[1] for row in rows), text=True,
                           capture_output=True, check=True).stdout.split("\n")
    failures = [f"nothing for {wanted}" for wanted in options.architectures.split(";") if wanted not in present]
    if not rows:
        failures.append("no kernel was found")
    for (architecture, _, attributes, shared), name in sorted(zip(rows, names), key=lambda row: (row[1], row[0][0])):
        name = name.replace("pecan::kernels::", "").removeprefix("void ")
        registers, local = attributes[ATTRIBUTE_REGISTERS], attributes[ATTRIBUTE_STACK]
        limit = next(limit for pattern, limit in LIMITS if re.search(pattern, name))
        print(f"sm_{architecture}  {registers:3} of {limit:3} registers  {local:4} bytes of local memory  "
              f"{shared:4} of shared memory  {name}")
        if shared > SHARED_BYTES:
            failures.append(f"{name} declares {shared} bytes of shared memory for sm_{architecture}, limit {SHARED_BYTES}")
        if registers > limit:
            failures.append(f"{name} takes {registers} registers for sm_{architecture}, limit {limit}")
        if local > 0:
            failures.append(f"{name} spills to {local} bytes of local memory for sm_{architecture}")
    print(f"{len(rows)} kernels in {units} units")
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
