#pragma once
/// What the emulation's library shows; all else in it is hidden, so that code with the checks and
/// the library's own, which must not have them, never share an inline function.

#define PECAN_EMULATION_API __attribute__((visibility("default")))
