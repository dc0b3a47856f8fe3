# SPDX-License-Identifier: Apache-2.0
# What a build with CONCLAVE_CUDA needs besides: the toolkit (nvcc and libcudart), NCCL, LibTorch's c10_cuda. Found here and nowhere
# else; what is missing joins CONCLAVE_MISSING. Defines cuda::runtime, nccl::nccl and torch::cuda, and enables the language CUDA.
set(CONCLAVE_SETUP_OPTIONS " --cuda")

# A toolkit on the machine, or the one that `launch/setup --cuda` puts beside LibTorch.
set(_wheels "${LibTorch_DIR_FOUND}/../nvidia")
if(NOT CUDAToolkit_ROOT AND EXISTS "${_wheels}/cu13/bin/nvcc")
  set(CUDAToolkit_ROOT "${_wheels}/cu13")
endif()
find_package(CUDAToolkit 13 QUIET)
if(NOT CUDAToolkit_FOUND)
  list(APPEND CONCLAVE_MISSING "  CUDA toolkit 13 (set CUDAToolkit_ROOT, put nvcc on the PATH, or run ./launch/setup --cuda)")
endif()

# ncclCommSplit and configurations with blocking = 0 came with 2.18.
set(NCCL_MINIMUM 2.18)
set(_nccl_roots "${NCCL_ROOT}" "$ENV{NCCL_ROOT}" "${_wheels}/nccl" "${CUDAToolkit_LIBRARY_ROOT}" "${CUDAToolkit_TARGET_DIR}"
  "${CUDAToolkit_ROOT}")
list(REMOVE_ITEM _nccl_roots "")
find_path(NCCL_INCLUDE nccl.h HINTS ${_nccl_roots} PATH_SUFFIXES include)
# The wheel has no libnccl.so, only the name with the version.
find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 HINTS ${_nccl_roots} PATH_SUFFIXES lib lib64)
if(NOT NCCL_INCLUDE OR NOT NCCL_LIBRARY)
  list(APPEND CONCLAVE_MISSING "  NCCL ${NCCL_MINIMUM} or newer: nccl.h and libnccl.so.2 (set NCCL_ROOT, or run ./launch/setup --cuda; Debian \
packages of NVIDIA: libnccl2 libnccl-dev)")
else()
  file(STRINGS "${NCCL_INCLUDE}/nccl.h" _lines REGEX "^#define NCCL_(MAJOR|MINOR|PATCH) ")
  string(REGEX REPLACE "[^0-9;]" "" _numbers "${_lines}")
  list(JOIN _numbers "." NCCL_VERSION)
  if(NCCL_VERSION VERSION_LESS NCCL_MINIMUM)
    list(APPEND CONCLAVE_MISSING "  NCCL ${NCCL_MINIMUM} or newer: ${NCCL_INCLUDE}/nccl.h is ${NCCL_VERSION}")
  endif()
endif()
if(LibTorch_FOUND AND NOT EXISTS "${LibTorch_DIR_FOUND}/lib/libc10_cuda.so")
  list(APPEND CONCLAVE_MISSING "  LibTorch with CUDA (${LibTorch_DIR_FOUND} is a CPU build; set LIBTORCH, or run ./launch/setup)")
endif()
if(CONCLAVE_MISSING)
  return()
endif()

# sm_80 also as PTX, which GPUs newer than Hopper compile for themselves when they first meet it; sm_90a for Hopper's own
# instructions, which no other GPU runs. Each further architecture takes as long again: the largest kernel file 13 s.
set(CONCLAVE_CUDA_ARCHITECTURES "" CACHE STRING "GPU architectures, as CMAKE_CUDA_ARCHITECTURES; empty: sm_80, its PTX, sm_90a")
set(CMAKE_CUDA_ARCHITECTURES ${CONCLAVE_CUDA_ARCHITECTURES})
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 90a-real)
endif()
set(CMAKE_CUDA_COMPILER "${CUDAToolkit_NVCC_EXECUTABLE}" CACHE FILEPATH "nvcc")
# One CUDA runtime in the process: LibTorch brings the shared one.
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
if(CCACHE_PROGRAM AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()
enable_language(CUDA)
# nvcc has C++20 since 12.0; CMake 3.25 has not heard of it.
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)

# --fmad=false as -ffp-contract=off on the host: a kernel gives the bits of the same text on the CPU, apart from the math functions.
# -lineinfo names source lines in compute-sanitizer and profilers and changes no code.
target_compile_options(conclave_flags INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:--Werror=all-warnings --fmad=false -lineinfo
  -Xcompiler=-Wall,-Wextra,-Wno-unused-parameter,-ffp-contract=off>)

add_library(cuda::runtime INTERFACE IMPORTED)
target_include_directories(cuda::runtime SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(cuda::runtime INTERFACE CUDA::cudart)

add_library(nccl::nccl INTERFACE IMPORTED)
target_include_directories(nccl::nccl SYSTEM INTERFACE "${NCCL_INCLUDE}")
get_filename_component(_nccl_folder "${NCCL_LIBRARY}" DIRECTORY)
target_link_libraries(nccl::nccl INTERFACE cuda::runtime "${NCCL_LIBRARY}" "-Wl,-rpath,${_nccl_folder}")

# Not libtorch_cuda.so: it wants cuDNN, cuBLAS, cuSPARSELt and NVSHMEM, 2 GB that a machine without a GPU need not have. core/device.h
# loads it when a GPU is chosen; LibTorch's kernels register themselves then.
add_library(torch::cuda INTERFACE IMPORTED)
target_link_libraries(torch::cuda INTERFACE torch::cpu cuda::runtime "${LibTorch_DIR_FOUND}/lib/libc10_cuda.so")
