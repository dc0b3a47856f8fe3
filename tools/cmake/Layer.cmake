# SPDX-License-Identifier: Apache-2.0
# layer(NAME [DEPENDS lower layers] [TORCH] [LINK libraries]): one static library per folder of src/, its sources listed
# explicitly in that folder's CMakeLists.txt through layer_sources(). tools/dev/check_layers reads the same lines.
set(CONCLAVE_PCH_OWNER "" CACHE INTERNAL "")

function(layer name)
  cmake_parse_arguments(ARG "TORCH" "" "DEPENDS;LINK" ${ARGN})
  set(target conclave_${name})
  add_library(${target} STATIC)
  list(TRANSFORM ARG_DEPENDS PREPEND conclave_)
  target_link_libraries(${target} PUBLIC conclave_flags ${ARG_DEPENDS} ${ARG_LINK})
  if(ARG_TORCH)
    target_link_libraries(${target} PUBLIC torch::cpu)
    # One precompiled header for every layer that sees LibTorch; never relied on for correctness.
    if(CONCLAVE_PCH_OWNER)
      target_precompile_headers(${target} REUSE_FROM ${CONCLAVE_PCH_OWNER})
    else()
      target_precompile_headers(${target} PRIVATE "${PROJECT_SOURCE_DIR}/src/core/precompiled.h")
      set(CONCLAVE_PCH_OWNER ${target} CACHE INTERNAL "")
    endif()
  endif()
  add_subdirectory(${name})
endfunction()

function(layer_sources name)
  target_sources(conclave_${name} PRIVATE ${ARGN})
endfunction()
