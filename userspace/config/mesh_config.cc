#include "userspace/config/mesh_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "userspace/config/value.h"

namespace meltemi::config {
namespace {

struct Form {
  std::string_view name;
  PathNormalization value;
};
constexpr Form kForms[] = {
    {"DEFAULT", PathNormalization::kBase},
    {"BASE", PathNormalization::kBase},
    {"NONE", PathNormalization::kNone},
    {"MERGE_SLASHES", PathNormalization::kMergeSlashes},
    {"DECODE_AND_MERGE_SLASHES", PathNormalization::kDecodeAndMergeSlashes},
};

std::optional<PathNormalization> form_of(std::string_view name) {
  for (const Form& form : kForms) {
    if (form.name == name) return form.value;
  }
  return std::nullopt;
}

const std::string* mesh_text(const Object& config_map) {
  const auto& data = config_map.as<kube::ConfigMap>().data();
  auto found = data.find(std::string(kMeshConfigKey));
  return found == data.end() ? nullptr : &found->second;
}

// The first document; null if there is none or it does not parse.
std::optional<Value> parse(const std::string& text, Problems* problems) {
  ParsedDocuments parsed = parse_documents(text, "");
  *problems = std::move(parsed.problems);
  if (!problems->empty() || parsed.documents.empty()) return std::nullopt;
  return std::move(parsed.documents[0]);
}

void check_paths(Check& check, const std::string& field, const Value& value) {
  const Value* form = value.find("normalization");
  for (const MapKey& key : value.keys) {
    if (key.text == "normalization") continue;
    check.error(fmt::format("{}.{}", field, key.text),
                fmt::format("unknown field \"{}\"", key.text), "Write `normalization`");
  }
  if (!value.is_map() || form == nullptr || form->is_null()) return;
  if (form->is_string() && form_of(form->text)) return;
  check.error(field + ".normalization",
              fmt::format("\"{}\" is no form of paths", form->text),
              "One of: DEFAULT, NONE, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES");
}

// Set by an option of the control plane: right if it says the same.
void check_option(Check& check, const std::string& field, const Value& value,
                  std::string_view ours, std::string_view option) {
  if (value.text == ours) return;
  check.warn(field, fmt::format("has no effect: the mesh uses \"{}\"", ours),
             fmt::format("Start the control plane with {}={}", option, value.text));
}

}  // namespace

MeshConfig mesh_config(View& view) {
  MeshConfig out;
  ObjectPtr object = view.object(Kind::kConfigMap, view.names().root_namespace, kMeshConfigMap);
  const std::string* text = object ? mesh_text(*object) : nullptr;
  if (text == nullptr) return out;
  Problems ignored;
  std::optional<Value> mesh = parse(*text, &ignored);
  const Value* paths = mesh ? mesh->find("pathNormalization") : nullptr;
  const Value* form = paths ? paths->find("normalization") : nullptr;
  if (form != nullptr && form->is_string()) {
    out.paths = form_of(form->text).value_or(PathNormalization::kBase);
  }
  return out;
}

void validate_mesh_config(Check& check, const MeshNames& names) {
  if (check.object().ns() != names.root_namespace || check.object().name() != kMeshConfigMap) {
    return;
  }
  const std::string* text = mesh_text(check.object());
  if (text == nullptr) return;
  const std::string base = fmt::format("data.{}", kMeshConfigKey);
  Problems problems;
  std::optional<Value> mesh = parse(*text, &problems);
  for (const Problem& problem : problems) check.error(base, problem.message, problem.fix);
  if (!mesh || mesh->is_null()) return;
  if (!mesh->is_map()) {
    check.error(base, fmt::format("expected a map, found {}", mesh->kind_name()),
                "Write MeshConfig's fields");
    return;
  }
  std::vector<std::string_view> unused;
  for (size_t i = 0; i < mesh->keys.size(); ++i) {
    const std::string& key = mesh->keys[i].text;
    const std::string field = fmt::format("{}.{}", base, key);
    if (key == "pathNormalization") {
      check_paths(check, field, mesh->items[i]);
    } else if (key == "trustDomain") {
      check_option(check, field, mesh->items[i], names.trust_domain, "TRUST_DOMAIN");
    } else if (key == "rootNamespace") {
      check_option(check, field, mesh->items[i], names.root_namespace, "ROOT_NAMESPACE");
    } else {
      unused.push_back(key);
    }
  }
  if (unused.empty()) return;
  check.warn(base, fmt::format("accepted without effect: {}", fmt::join(unused, ", ")),
             "Only pathNormalization is read from here", kCodeIgnoredField);
}

}  // namespace meltemi::config
