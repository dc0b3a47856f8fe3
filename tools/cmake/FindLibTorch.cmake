# SPDX-License-Identifier: Apache-2.0
# Finds LibTorch without its own CMake files, which insist on the CUDA toolkit even for a CPU program.
# Looked at in this order: LIBTORCH (variable or environment), the folder that launch/setup fills, a Python that has torch.
# Defines: torch::cpu; torch::cuda with CONCLAVE_CUDA; LibTorch_VERSION; LibTorch_REASON when nothing fits.
set(LibTorch_MINIMUM 2.11)
set(_candidates ${LIBTORCH} $ENV{LIBTORCH})
set(_cache "$ENV{XDG_CACHE_HOME}")
if(NOT _cache)
  set(_cache "$ENV{HOME}/.cache")
endif()
list(APPEND _candidates "${_cache}/conclave/libtorch-2.11.0/torch")
foreach(_python python3 python)
  execute_process(COMMAND ${_python} -c "import importlib.util as u;print(u.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE _where OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE _code)
  if(_code EQUAL 0)
    list(APPEND _candidates "${_where}")
  endif()
endforeach()

set(LibTorch_REASON "none found: set LIBTORCH=/path/to/torch or run ./launch/setup")
foreach(_dir IN LISTS _candidates)
  if(NOT EXISTS "${_dir}/include/torch/headeronly/version.h")
    continue()
  endif()
  file(STRINGS "${_dir}/include/torch/headeronly/version.h" _lines REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
  string(REGEX REPLACE "[^0-9;]" "" _numbers "${_lines}")
  list(JOIN _numbers "." _version)
  if(_version VERSION_LESS LibTorch_MINIMUM)
    set(LibTorch_REASON "${_dir} is ${_version}, older than ${LibTorch_MINIMUM}")
    continue()
  endif()
  set(LibTorch_DIR_FOUND "${_dir}")
  set(LibTorch_VERSION "${_version}")
  break()
endforeach()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch REQUIRED_VARS LibTorch_DIR_FOUND VERSION_VAR LibTorch_VERSION)

if(LibTorch_FOUND AND NOT TARGET torch::cpu)
  # LibTorch carries an fmt of its own in its include folder; ours must win, or Debian's spdlog does not compile.
  set(_fmt_first "${PROJECT_BINARY_DIR}/fmt_first")
  get_target_property(_fmt_include fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
  file(MAKE_DIRECTORY "${_fmt_first}")
  file(CREATE_LINK "${_fmt_include}/fmt" "${_fmt_first}/fmt" SYMBOLIC)

  add_library(torch::cpu INTERFACE IMPORTED)
  target_include_directories(torch::cpu SYSTEM INTERFACE "${_fmt_first}" "${LibTorch_DIR_FOUND}/include"
    "${LibTorch_DIR_FOUND}/include/torch/csrc/api/include")
  # at::parallel_for is inline: without -fopenmp in our own files it silently runs on one thread.
  target_compile_options(torch::cpu INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-fopenmp>)
  target_compile_definitions(torch::cpu INTERFACE AT_PARALLEL_OPENMP=1)
  # DT_RPATH (not RUNPATH) also serves LibTorch's own dependencies, so no environment variable is needed to run.
  set(_lib "${LibTorch_DIR_FOUND}/lib")
  set(_paths "${_lib}")
  foreach(_extra "${LibTorch_DIR_FOUND}/../nvidia/cu13/lib" "${_cache}/conclave/libtorch-2.11.0/nvidia/cu13/lib" /usr/local/cuda/lib64 /usr/local/cuda/extras/CUPTI/lib64)
    if(EXISTS "${_extra}")
      list(APPEND _paths "${_extra}")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES _paths)
  foreach(_path IN LISTS _paths)
    target_link_options(torch::cpu INTERFACE "-Wl,-rpath,${_path}" "-Wl,-rpath-link,${_path}")
  endforeach()
  target_link_options(torch::cpu INTERFACE -Wl,--disable-new-dtags -fopenmp)
  target_link_libraries(torch::cpu INTERFACE "${_lib}/libtorch_cpu.so" "${_lib}/libc10.so")
endif()
