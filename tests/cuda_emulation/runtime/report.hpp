#pragma once
/// Findings of the checker, and names for addresses of code.

#include <string>

namespace pecan::emulation {

/// Records a finding and prints it. `kind` is one of memory, uninitialised, alignment, race,
/// stream race, barrier, warp, deadlock, trap, undefined, launch, library.
void report(const char* kind, std::string text);

/// Whether this is the first finding of `kind` at the place `where`.
bool is_first_at(const void* where, const char* kind);

/// "file:line" of an instruction in front of the return address `code`, or the address where
/// nothing is known of it.
std::string source_of(const void* code);
/// Name of a kernel, without its parameters.
std::string kernel_name(const void* kernel);

}  // namespace pecan::emulation
