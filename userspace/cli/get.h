// `get`: tables, YAML, JSON and names of objects, of the sandbox's nodes and of the mesh's own
// processes.
#pragma once

#include <string>
#include <vector>

#include "userspace/cli/context.h"

namespace meltemi::cli {

struct GetOptions {
  std::vector<std::string> words;  // KIND[,KIND...] [NAME...]; also "nodes", "mesh", "all"
  std::string output;              // "", "wide", "yaml", "json", "name", "jsonpath=TEMPLATE"
  bool all_namespaces = false;
  std::string selector;
  std::vector<std::string> label_columns;  // -L
  bool show_labels = false;
  bool no_headers = false;
  bool watch = false;  // go on and tell changes
};
int get_command(const Context& context, const GetOptions& options);

// One object, or those that the selector picks, in words: with what its node, its pods and the mesh
// know of it.
struct DescribeOptions {
  std::vector<std::string> words;  // KIND NAME..., KIND/NAME...
  std::string selector;
};
int describe_command(const Context& context, const DescribeOptions& options);

int api_resources_command();

}  // namespace meltemi::cli
