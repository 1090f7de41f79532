# Precompiled headers: of what most files include, only headers of the system, parsed once a flavour
# (without them parsing was half of a cold build). They must never hold a header of ours: a change
# would compile everything, and the layers would no longer show. A file still includes what it uses;
# the debug flavour, which is built without, finds the one that does not.

set(standard <algorithm> <array> <atomic> <charconv> <chrono> <cstring> <deque> <filesystem> <fstream>
  <functional> <map> <memory> <mutex> <optional> <random> <set> <span> <sstream> <string> <string_view>
  <thread> <unordered_map> <utility> <variant> <vector> <fmt/format.h>)
set(test ${standard} <gmock/gmock.h> <gtest/gtest.h>)
set(api <algorithm> <memory> <string> <google/protobuf/arena.h> <google/protobuf/arenastring.h>
  <google/protobuf/descriptor.h> <google/protobuf/extension_set.h>
  <google/protobuf/generated_message_reflection.h> <google/protobuf/generated_message_util.h>
  <google/protobuf/io/coded_stream.h> <google/protobuf/map_entry.h>
  <google/protobuf/map_field_inl.h> <google/protobuf/message.h>
  <google/protobuf/reflection_ops.h> <google/protobuf/repeated_field.h>
  <google/protobuf/unknown_field_set.h> <google/protobuf/wire_format.h>)

file(WRITE ${CMAKE_BINARY_DIR}/precompiled.cc "")
foreach(set standard test api)
  add_library(precompiled_${set} OBJECT ${CMAKE_BINARY_DIR}/precompiled.cc)
  # Time stamps would make each build's header another one to the compiler cache.
  target_compile_options(precompiled_${set} PRIVATE "SHELL:-Xclang -fno-pch-timestamp")
  target_precompile_headers(precompiled_${set} PRIVATE ${${set}})
endforeach()
target_compile_options(precompiled_api PRIVATE -w -g0)

function(meltemi_precompiled target set)
  if(NOT MELTEMI_FLAVOUR STREQUAL "debug")
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-Xclang -fno-pch-timestamp>")
    target_precompile_headers(${target} REUSE_FROM precompiled_${set})
  endif()
endfunction()
