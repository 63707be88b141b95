cmake_minimum_required(VERSION 3.25)
# Scans device code for what the CUDA emulation would not run, or not see.
# usage: cmake -DROOT=<project> -P kernels_test.cmake
file(GLOB_RECURSE files ${ROOT}/kernels/*.cu ${ROOT}/kernels/*.cuh ${ROOT}/kernels/*.cpp ${ROOT}/kernels/*.hpp
     ${ROOT}/src/*.cpp ${ROOT}/src/*.hpp ${ROOT}/include/*.hpp)
list(LENGTH files count)
if(count LESS 40)
  message(FATAL_ERROR "only ${count} files were scanned: the scan looks in the wrong place")
endif()

# Each a pattern, the one file that may hold it, and the reason.
set(banned
  "<<<@@only nvcc reads this launch syntax: use launch() of kernels/launch.cuh"
  "cudaLaunchKernel@kernels/launch.cuh@kernels are launched by launch() of kernels/launch.cuh alone, which checks"
  "extern +__shared__@kernels/launch.cuh@dynamic shared memory is declared once: cast dynamic_smem"
  "__CUDA_ARCH__@kernels/ptx.cuh@code that only a GPU sees is never executed here"
  "PECAN_CUDA_EMULATION@kernels/ptx.cuh@the emulation runs what the GPU runs"
  "(^|[^_a-z])asm[ (]@kernels/ptx.cuh@PTX needs a twin that the emulation can run")
foreach(file IN LISTS files)
  file(RELATIVE_PATH shown ${ROOT} ${file})
  foreach(ban IN LISTS banned)
    string(REGEX MATCH "^(.*)@(.*)@(.*)$" _ "${ban}")
    set(pattern "${CMAKE_MATCH_1}")
    set(allowed "${CMAKE_MATCH_2}")
    set(reason "${CMAKE_MATCH_3}")
    if(shown STREQUAL allowed)
      continue()
    endif()
    file(STRINGS ${file} found REGEX "${pattern}")
    # Comments may speak of it.
    list(FILTER found EXCLUDE REGEX "^ *//")
    if(found)
      message(SEND_ERROR "${shown}: ${found}: ${reason}")
    endif()
  endforeach()
endforeach()
message(STATUS "${count} files")
