#pragma once

/// Marks a function that device code calls as well as the host.
#ifdef __CUDACC__
#define PECAN_HD __host__ __device__
#else
#define PECAN_HD
#endif
