#include "userspace/config/pod_fields.h"

#include <fmt/format.h>

#include <algorithm>

#include "meltemi/kube/v1/kube.pb.h"
#include "meltemi/kube/v1/options.pb.h"

namespace meltemi::config {
namespace {

namespace kube = ::meltemi::kube::v1;
using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

FieldEffect effect_of(const FieldDescriptor* field) {
  switch (field->options().GetExtension(kube::effect)) {
    case kube::ACCEPTED:
      return FieldEffect::kAccepted;
    case kube::REFUSED:
      return FieldEffect::kRefused;
    default:
      return FieldEffect::kHonoured;
  }
}

// Messages that stand for a scalar or have nothing worth a row of their own.
bool is_leaf(const FieldDescriptor* field) {
  if (field->is_map() || field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) return true;
  const Descriptor* type = field->message_type();
  return type->file()->package() == "google.protobuf" || type == kube::IntOrString::descriptor() ||
         type->field_count() == 0;
}

void collect(const Descriptor* type, const std::string& path, std::vector<PodField>* out) {
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    std::string inner = fmt::format("{}.{}", path, field->json_name());
    if (field->is_map()) {
      inner += "{}";
    } else if (field->is_repeated()) {
      inner += "[]";
    }
    FieldEffect effect = effect_of(field);
    const std::string& note = field->options().GetExtension(kube::note);
    if (effect != FieldEffect::kHonoured || is_leaf(field) || !note.empty()) {
      out->push_back({inner, effect, note});
    }
    if (effect == FieldEffect::kHonoured && !is_leaf(field)) {
      collect(field->message_type(), inner, out);
    }
  }
}

std::string_view effect_name(FieldEffect effect) {
  switch (effect) {
    case FieldEffect::kHonoured:
      return "honoured";
    case FieldEffect::kAccepted:
      return "accepted without effect";
    case FieldEffect::kRefused:
      return "refused";
  }
  return "";
}

}  // namespace

const std::vector<PodField>& pod_fields() {
  static const std::vector<PodField> fields = [] {
    std::vector<PodField> out;
    collect(kube::PodSpec::descriptor(), "spec", &out);
    std::sort(out.begin(), out.end(),
              [](const PodField& a, const PodField& b) { return a.path < b.path; });
    return out;
  }();
  return fields;
}

std::string pod_fields_markdown() {
  std::string out = "| field | what the sandbox does | note |\n|---|---|---|\n";
  for (const PodField& field : pod_fields()) {
    out += fmt::format("| `{}` | {} | {} |\n", field.path, effect_name(field.effect), field.note);
  }
  return out;
}

}  // namespace meltemi::config
