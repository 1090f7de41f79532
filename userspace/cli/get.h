// `get`: tables, YAML, JSON and names of objects, of the sandbox's nodes and of the mesh's own
// processes.
#pragma once

#include <string>
#include <vector>

#include "userspace/cli/context.h"

namespace meltemi::cli {

struct GetOptions {
  std::vector<std::string> words;  // KIND[,KIND...] [NAME...]; also "nodes", "mesh", "all"
  std::string output;              // "", "wide", "yaml", "json", "name"
  bool all_namespaces = false;
  std::string selector;
  std::vector<std::string> label_columns;  // -L
  bool show_labels = false;
  bool no_headers = false;
};
int get_command(const Context& context, const GetOptions& options);

int api_resources_command();

}  // namespace meltemi::cli
