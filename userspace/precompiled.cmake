# Precompiled headers: of what most files include, only headers of the system, parsed once a flavour
# (without them parsing was half of a cold build). They must never hold a header of ours: a change
# would compile everything, and the layers would no longer show. A file still includes what it uses;
# the debug flavour, which is built without, finds the one that does not.

set(standard <algorithm> <array> <atomic> <charconv> <chrono> <cstring> <deque> <filesystem> <fstream>
  <functional> <map> <memory> <mutex> <optional> <random> <set> <span> <sstream> <string> <string_view>
  <thread> <unordered_map> <utility> <variant> <vector> <fmt/format.h>)
set(test ${standard} <gmock/gmock.h> <gtest/gtest.h>)

file(WRITE ${CMAKE_BINARY_DIR}/precompiled.cc "")
foreach(set standard test)
  add_library(precompiled_${set} OBJECT ${CMAKE_BINARY_DIR}/precompiled.cc)
  # Time stamps would make each build's header another one to the compiler cache.
  target_compile_options(precompiled_${set} PRIVATE "SHELL:-Xclang -fno-pch-timestamp")
  target_precompile_headers(precompiled_${set} PRIVATE ${${set}})
endforeach()
target_compile_options(precompiled_test PRIVATE ${MELTEMI_TEST_OPTIONS})

function(meltemi_precompiled target set)
  if(NOT MELTEMI_FLAVOUR STREQUAL "debug")
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-Xclang -fno-pch-timestamp>")
    target_precompile_headers(${target} REUSE_FROM precompiled_${set})
  endif()
endfunction()
