# The layer table and the functions that hold everybody to it.
#
#   meltemi_library(NAME codec DEPS base SOURCES a.cc EXTERNAL ipsec-mb)
#   meltemi_app(NAME ztunnel DEPS net model ... SOURCES main.cc)        one executable
#   meltemi_test(NAME codec_h2_test TIER unit DEPS codec SOURCES x.cc)  in tests/cmake
#
# A library may depend on folders of a lower layer, and on those of its own layer only where the
# table below says so. External packages that the design wants to be replaceable (liburing, libbpf,
# OpenSSL, ipsec-mb, gRPC) may be linked only by the folders named in MELTEMI_EXTERNAL_<pkg>.
# The #include lines of each folder are checked against the same table.

# --- flavours -------------------------------------------------------------------------------
set(MELTEMI_FLAVOUR "release" CACHE STRING "release, debug, asan, tsan, fuzz or coverage")
add_compile_options(-Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers
  -fno-omit-frame-pointer -fstack-protector-strong -march=x86-64-v2 -fcolor-diagnostics)
# Said here and not by CMake's property, which tells executables and libraries apart: they share
# their precompiled headers.
add_compile_options(-fPIC)
add_link_options(-pie -fuse-ld=lld -Wl,-z,relro,-z,now)
if(MELTEMI_FLAVOUR STREQUAL "release")
  add_compile_options(-O2 -gline-tables-only)
elseif(MELTEMI_FLAVOUR STREQUAL "debug")
  add_compile_options(-O0 -g)
elseif(MELTEMI_FLAVOUR STREQUAL "asan" OR MELTEMI_FLAVOUR STREQUAL "fuzz")
  # vptr asks the kernel through a pipe whether memory may be read: a test that runs out of
  # descriptors would be told that every object is broken.
  add_compile_options(-O1 -gline-tables-only -fsanitize=address,undefined -fno-sanitize=vptr
    -fno-sanitize-recover=undefined)
  add_link_options(-fsanitize=address,undefined -fno-sanitize=vptr)
  if(MELTEMI_FLAVOUR STREQUAL "fuzz")
    add_compile_options(-fsanitize=fuzzer-no-link)
  endif()
elseif(MELTEMI_FLAVOUR STREQUAL "tsan")
  add_compile_options(-O1 -gline-tables-only -fsanitize=thread)
  add_link_options(-fsanitize=thread)
elseif(MELTEMI_FLAVOUR STREQUAL "coverage")
  add_compile_options(-O0 -g -fprofile-instr-generate -fcoverage-mapping)
  add_link_options(-fprofile-instr-generate)
else()
  message(FATAL_ERROR "MELTEMI_FLAVOUR=${MELTEMI_FLAVOUR} is not release, debug, asan, tsan, fuzz or coverage")
endif()
# The tests' own code: quickly compiled counts, it does little itself.
set(MELTEMI_TEST_OPTIONS)
if(MELTEMI_FLAVOUR MATCHES "asan|tsan")
  set(MELTEMI_TEST_OPTIONS -O0)
elseif(MELTEMI_FLAVOUR STREQUAL "release")
  set(MELTEMI_TEST_OPTIONS -O0 -U_FORTIFY_SOURCE)  # fortified code must be optimised
endif()
if(NOT MELTEMI_FLAVOUR MATCHES "asan|tsan|fuzz|debug")
  add_compile_definitions(_FORTIFY_SOURCE=2)
endif()
add_compile_definitions(SPDLOG_FMT_EXTERNAL SPDLOG_COMPILED_LIB MELTEMI_VERSION="${PROJECT_VERSION}")
include_directories(${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR}/gen)

# --- the table ------------------------------------------------------------------------------
set(MELTEMI_LAYER_base 1)
foreach(name codec model rt sys)
  set(MELTEMI_LAYER_${name} 2)
endforeach()
foreach(name net pki)
  set(MELTEMI_LAYER_${name} 3)
endforeach()
foreach(name xds http telemetry config)
  set(MELTEMI_LAYER_${name} 4)
endforeach()
foreach(name agent cni control cli sandbox ztunnel waypoint)
  set(MELTEMI_LAYER_${name} 5)
endforeach()
# The edges inside a layer: a tunnel asks pki who a certificate's holder is, so that there is one
# profile; the CLI carries the sandbox; telemetry fills pages of the HTTP server.
set(MELTEMI_SIBLING_net pki)
set(MELTEMI_SIBLING_cli sandbox)
set(MELTEMI_SIBLING_telemetry http)

set(MELTEMI_FOLDERS
  userspace/base
  userspace/codec userspace/model userspace/rt userspace/sys
  userspace/net userspace/pki
  userspace/xds userspace/http userspace/telemetry userspace/config
  userspace/agent userspace/cni userspace/control userspace/sandbox userspace/cli
  ztunnel waypoint)

set(MELTEMI_EXTERNAL_uring rt)
set(MELTEMI_EXTERNAL_bpf agent)
set(MELTEMI_EXTERNAL_ssl codec pki net)
set(MELTEMI_EXTERNAL_crypto codec pki net)
set(MELTEMI_EXTERNAL_IPSec_MB codec)
set(MELTEMI_EXTERNAL_grpc++ xds control)

function(meltemi_check_edge from to)
  if(NOT DEFINED MELTEMI_LAYER_${to})
    message(FATAL_ERROR "${from} depends on ${to}, which is no folder of the layer table")
  endif()
  if(${from} STREQUAL ${to} OR to IN_LIST MELTEMI_SIBLING_${from})
    return()
  endif()
  if(NOT MELTEMI_LAYER_${to} LESS MELTEMI_LAYER_${from})
    message(FATAL_ERROR "layering: ${from} (L${MELTEMI_LAYER_${from}}) must not depend on ${to} "
      "(L${MELTEMI_LAYER_${to}}); see userspace/layers.cmake and ARCHITECTURE.md")
  endif()
endfunction()

# Every repo-rooted include of `name`'s sources must be an edge of the table as well.
function(meltemi_check_includes name folder)
  file(GLOB files ${folder}/*.h ${folder}/*.cc ${folder}/*/*.h ${folder}/*/*.cc)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${files})
  foreach(file IN LISTS files)
    file(STRINGS ${file} lines REGEX "^#include \"(userspace|ztunnel|waypoint|bpf)/")
    foreach(line IN LISTS lines)
      if(line MATCHES "\"userspace/api/")
        continue()
      elseif(line MATCHES "\"bpf/abi.h\"")
        continue()
      elseif(line MATCHES "\"userspace/([a-z]+)/")
        meltemi_check_edge(${name} ${CMAKE_MATCH_1})
      elseif(line MATCHES "\"(ztunnel|waypoint)/")
        meltemi_check_edge(${name} ${CMAKE_MATCH_1})
      else()
        message(FATAL_ERROR "${file}: ${line}: not an edge of the layer table")
      endif()
    endforeach()
  endforeach()
endfunction()

function(meltemi_link target name deps external api)
  foreach(dep IN LISTS deps)
    meltemi_check_edge(${name} ${dep})
    target_link_libraries(${target} PUBLIC meltemi_${dep})
  endforeach()
  foreach(package IN LISTS external)
    if(DEFINED MELTEMI_EXTERNAL_${package} AND NOT name IN_LIST MELTEMI_EXTERNAL_${package})
      message(FATAL_ERROR "layering: ${name} must not link ${package}; only "
        "${MELTEMI_EXTERNAL_${package}} may")
    endif()
    target_link_libraries(${target} PUBLIC ${package})
  endforeach()
  foreach(package IN LISTS api)
    if(package STREQUAL "grpc" AND NOT name IN_LIST MELTEMI_EXTERNAL_grpc++)
      message(FATAL_ERROR "layering: ${name} must not link the gRPC stubs")
    endif()
    target_link_libraries(${target} PUBLIC api_${package})
  endforeach()
endfunction()

function(meltemi_library)
  cmake_parse_arguments(A "" "NAME" "DEPS;SOURCES;EXTERNAL;API" ${ARGN})
  add_library(meltemi_${A_NAME} STATIC ${A_SOURCES})
  meltemi_precompiled(meltemi_${A_NAME} standard)
  meltemi_check_includes(${A_NAME} ${CMAKE_CURRENT_SOURCE_DIR})
  meltemi_link(meltemi_${A_NAME} ${A_NAME} "${A_DEPS}" "${A_EXTERNAL}" "${A_API}")
endfunction()

# Daemons whose memory swells with their connections use an allocator that gives it back and is not
# slower (measured: ARCHITECTURE.md). Sanitizers bring their own.
function(meltemi_returns_memory target)
  if(NOT MELTEMI_FLAVOUR MATCHES "asan|tsan|fuzz")
    target_link_libraries(${target} PRIVATE jemalloc)
  endif()
endfunction()

# An app is a library (so that tests can link its parts) plus a main() in MAIN.
function(meltemi_app)
  cmake_parse_arguments(A "" "NAME;OUTPUT;MAIN" "DEPS;SOURCES;EXTERNAL;API" ${ARGN})
  meltemi_library(NAME ${A_NAME} DEPS ${A_DEPS} SOURCES ${A_SOURCES} EXTERNAL ${A_EXTERNAL} API ${A_API})
  add_executable(${A_OUTPUT} ${A_MAIN})
  meltemi_precompiled(${A_OUTPUT} standard)
  target_link_libraries(${A_OUTPUT} PRIVATE meltemi_${A_NAME})
  set_target_properties(${A_OUTPUT} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
endfunction()
