// Any bytes as a manifest: reading, validating, printing, analysing and translating must neither
// crash nor hang, and what is printed must read back as the same objects.
#include <cstdio>
#include <cstdlib>

#include "userspace/config/analyze.h"
#include "userspace/config/translate.h"
#include "userspace/config/tree.h"

using namespace meltemi::config;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view bytes(reinterpret_cast<const char*>(data), size);
  ReadOptions options;
  options.limits.max_nodes = 20'000;
  ReadResult read = read_and_validate(bytes, "fuzz.yaml", options);
  for (const Problem& problem : read.problems) {
    if (problem.to_string().empty()) std::abort();
  }
  if (!read.objects.empty()) {
    options.warn_ignored = false;
    for (const std::string& printed :
         {objects_to_yaml(read.objects), objects_to_json(read.objects)}) {
      ReadResult again = read_objects(printed, "printed.yaml", options);
      bool same = again.objects.size() == read.objects.size();
      for (size_t i = 0; same && i < again.objects.size(); ++i) {
        same = again.objects[i].same_content(read.objects[i]);
      }
      if (!same) {
        std::fprintf(stderr, "printed objects read back differently:\n%s\n", printed.c_str());
        for (const Problem& p : again.problems) std::fprintf(stderr, "%s\n", p.to_string().c_str());
        std::abort();
      }
    }
  }
  ObjectStore store;
  ManifestTree tree(&store, options);
  Translator translator(&store, MeshNames());
  translator.apply(tree.put("fuzz.yaml", bytes).changes);
  analyze(store);
  translator.apply(tree.remove("fuzz.yaml").changes);
  return 0;
}
