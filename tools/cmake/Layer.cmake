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
    set_target_properties(${target} PROPERTIES CONCLAVE_TORCH ON)
    target_link_libraries(${target} PUBLIC torch::cpu)
    # One precompiled header for every layer that sees LibTorch; never relied on for correctness.
    if(CONCLAVE_PCH_OWNER)
      target_precompile_headers(${target} REUSE_FROM ${CONCLAVE_PCH_OWNER})
    else()
      target_precompile_headers(${target} PRIVATE "${PROJECT_SOURCE_DIR}/src/core/precompiled.h")
      set(CONCLAVE_PCH_OWNER ${target} CACHE INTERNAL "")
    endif()
  endif()
  verify_headers(${name} "${ARG_TORCH}")
  add_subdirectory(${name})
endfunction()

function(layer_sources name)
  target_sources(conclave_${name} PRIVATE ${ARGN})
endfunction()

# layer_cuda_sources(NAME CUDA sources STUB sources [LINK libraries]): what differs between a CPU and a CUDA build is which of the
# two lists is compiled, never a conditional in a file. The CUDA list (.cu, .cpp) sees the toolkit's headers and, in a TORCH layer,
# c10_cuda; LINK is what only that list needs. Headers are shared by both and stay plain C++.
function(layer_cuda_sources name)
  cmake_parse_arguments(ARG "" "" "CUDA;STUB;LINK" ${ARGN})
  if(NOT CONCLAVE_CUDA)
    layer_sources(${name} ${ARG_STUB})
    return()
  endif()
  layer_sources(${name} ${ARG_CUDA})
  get_target_property(torch conclave_${name} CONCLAVE_TORCH)
  if(torch)
    list(APPEND ARG_LINK torch::cuda)
  endif()
  target_link_libraries(conclave_${name} PRIVATE cuda::runtime ${ARG_LINK})
endfunction()

# Makes every header of the layer compile alone in the target all_verify_interface_header_sets (tools/dev/check_headers builds it),
# without the precompiled header. A glob on purpose: the header that nobody listed is the one to verify.
function(verify_headers name torch)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${name}/*.h")
  # core has the door to LibTorch but is built without it; those headers are verified with kernels, the lowest layer with tensors.
  set(doors "${PROJECT_SOURCE_DIR}/src/core/tensor.h" "${PROJECT_SOURCE_DIR}/src/core/precompiled.h")
  if(NOT torch)
    list(REMOVE_ITEM headers ${doors})
  elseif(name STREQUAL "kernels")
    list(APPEND headers ${doors})
  endif()
  target_sources(conclave_${name} PUBLIC FILE_SET HEADERS BASE_DIRS "${PROJECT_SOURCE_DIR}/src" FILES ${headers})
  set_target_properties(conclave_${name} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
endfunction()
