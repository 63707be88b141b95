# pecan_add_emulated_library(NAME VARIANT fast|checked SOURCES ... [LIBRARIES ...] [TYPE STATIC|SHARED|MODULE]):
# device code (.cu) and host code of the CUDA backend, compiled for the CPU; the CUDA runtime, cuBLAS and NCCL are
# pecan_cuda_emulation. Shared unless TYPE says otherwise: then no inline function of the library, which the checks
# need as they were compiled, gives way to one of a program without them. All code of one program that
# includes the same kernels must have one variant. A source's language is a property of the folder that calls this.
function(pecan_add_emulated_library name)
  cmake_parse_arguments(EMULATED "" "VARIANT;TYPE" "SOURCES;LIBRARIES" ${ARGN})
  if(NOT EMULATED_TYPE)
    set(EMULATED_TYPE SHARED)
  endif()
  set(emulation ${PROJECT_SOURCE_DIR}/tests/cuda_emulation)
  # Each module of device code has dynamic shared memory of its own.
  add_library(${name} ${EMULATED_TYPE} ${EMULATED_SOURCES} ${emulation}/runtime/dynamic_memory.cpp)
  set(kernels ${EMULATED_SOURCES})
  list(FILTER kernels INCLUDE REGEX "\\.cu$")
  if(kernels)
    set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
  endif()
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON VISIBILITY_INLINES_HIDDEN ON)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/kernels ${PROJECT_SOURCE_DIR}/include)
  target_link_libraries(${name} PUBLIC pecan_cuda_emulation ${EMULATED_LIBRARIES} PRIVATE pecan_options fmt::fmt)
  set(linked INTERFACE)
  if(NOT EMULATED_TYPE STREQUAL STATIC)
    set(linked PRIVATE)
    target_link_options(${name} PRIVATE -Wl,--version-script=${emulation}/runtime/dynamic_memory.map)
  endif()
  # Kernels read memory as vectors of what it was written as, which nvcc allows, and have pragmas for it. Shared
  # memory is never initialised, so that no access to it has to ask whether it is.
  set(options -fno-strict-aliasing -fno-extern-tls-init -Wno-unknown-pragmas)
  if(EMULATED_VARIANT STREQUAL checked)
    # The calls that these make go to the emulation, not to a sanitizer's library: no target is linked with them.
    list(APPEND options -O1 -fno-tree-vectorize --param=tsan-instrument-func-entry-exit=0
         -fsanitize=thread,alignment,bounds,signed-integer-overflow,shift,integer-divide-by-zero)
    target_link_options(${name} ${linked} -Wl,--wrap=memcpy,--wrap=memmove,--wrap=memset)
  elseif(EMULATED_VARIANT STREQUAL fast)
    list(APPEND options -O2)
  else()
    message(FATAL_ERROR "pecan_add_emulated_library(${name}): VARIANT is '${EMULATED_VARIANT}'; use fast or checked")
  endif()
  target_compile_options(${name} PRIVATE ${options})
endfunction()
