# SPDX-License-Identifier: Apache-2.0
# Flags for our own targets only, carried by the interface target `conclave_flags`.
find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

add_library(conclave_flags INTERFACE)
# nvcc takes options of its own only (Cuda.cmake), so these name their languages.
target_compile_options(conclave_flags INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:
  -Wall -Wextra -Wpedantic -Wno-unused-parameter -Werror
  # Bits must not depend on how the compiler contracts a*b+c in one build and not in the next.
  -ffp-contract=off>)
target_include_directories(conclave_flags INTERFACE "${PROJECT_SOURCE_DIR}/src")

# Debian 12's linker (2.40) begins the part to be protected after relocation at a thread-local's place, which may lie on a
# page that is not mapped; ATen's headers bring a thread-local of one byte. Such a program does not start: "cannot apply
# additional memory protection after relocation". It depends on nothing but sizes, so any change may hit it.
target_link_options(conclave_flags INTERFACE -Wl,-z,norelro)

find_program(MOLD_PROGRAM mold)
if(MOLD_PROGRAM)
  target_link_options(conclave_flags INTERFACE -fuse-ld=mold)
endif()

if(CONCLAVE_SANITIZE)
  # GCC 12 takes instrumented vectors for memory that new has not given.
  target_compile_options(conclave_flags INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${CONCLAVE_SANITIZE}
    -fno-omit-frame-pointer -fno-sanitize-recover=all -Wno-free-nonheap-object>)
  target_link_options(conclave_flags INTERFACE -fsanitize=${CONCLAVE_SANITIZE})
endif()
