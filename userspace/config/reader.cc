// Documents to objects: the envelope (apiVersion, kind, metadata), the kind's body, and the lines.
#include <fmt/format.h>

#include "userspace/config/decode.h"
#include "userspace/config/object.h"
#include "userspace/config/reader.h"

namespace meltemi::config {
namespace {

std::string text_of(const Value& document, std::string_view key) {
  const Value* value = document.find(key);
  return value != nullptr && value->is_string() ? value->text : std::string();
}

void collect_lines(const Value& value, const std::string& path,
                   std::map<std::string, int, std::less<>>* lines) {
  for (size_t i = 0; i < value.items.size(); ++i) {
    std::string inner;
    int line = value.items[i].line;
    if (value.is_map()) {
      inner = path.empty() ? value.keys[i].text : fmt::format("{}.{}", path, value.keys[i].text);
      line = value.keys[i].line;
    } else {
      inner = fmt::format("{}[{}]", path, i);
    }
    lines->emplace(inner, line);
    collect_lines(value.items[i], inner, lines);
  }
}

}  // namespace

class ObjectReader {
 public:
  ObjectReader(std::string_view file, const ReadOptions& options, ReadResult* out,
               std::vector<Object>* broken)
      : file_(file), options_(options), out_(*out), broken_(broken) {}

  void document(const Value& document) {
    if (!document.is_map()) {
      plain_error(document.line, kCodeSchema,
                  fmt::format("expected an object (a map with apiVersion and kind), found {}",
                              document.kind_name()),
                  "");
      return;
    }
    std::string api_version = text_of(document, "apiVersion");
    std::string kind = text_of(document, "kind");
    const KindInfo* info = find_kind(api_version, kind);
    // "List", or what the API server calls a list of one kind: "ServiceList".
    if (info == nullptr && kind.ends_with("List") &&
        (kind == "List" || document.find("items") != nullptr)) {
      list(document);
      return;
    }
    if (info == nullptr) {
      unknown_kind(document, api_version, kind);
      return;
    }
    object(document, *info, api_version);
  }

 private:
  void list(const Value& document) {
    const Value* items = document.find("items");
    if (items == nullptr || !items->is_list()) {
      plain_error(document.line, kCodeSchema, "a List needs `items`", "Add `items: []`");
      return;
    }
    for (const Value& item : items->items) this->document(item);
  }

  void plain_error(int line, std::string_view code, std::string message, std::string fix,
                   std::string object = {}) {
    Problem problem;
    problem.code = code;
    problem.object = std::move(object);
    problem.file = file_;
    problem.line = line;
    problem.message = std::move(message);
    problem.fix = std::move(fix);
    out_.problems.push_back(std::move(problem));
  }

  void unknown_kind(const Value& document, const std::string& api_version,
                    const std::string& kind) {
    int line = document.find("kind") ? document.find("kind")->line : document.line;
    std::string name;
    if (const Value* meta = document.find("metadata"); meta != nullptr && meta->is_map()) {
      name = text_of(*meta, "name");
    }
    std::string object = kind.empty() || name.empty() ? "" : fmt::format("{} {}", kind, name);
    if (kind.empty() || api_version.empty()) {
      plain_error(document.line, kCodeSchema,
                  fmt::format("`{}` is missing", kind.empty() ? "kind" : "apiVersion"),
                  "Every object starts with apiVersion and kind", object);
      return;
    }
    if (is_known_unsupported(api_version, kind)) {
      plain_error(line, kCodeUnsupported,
                  fmt::format("kind {} ({}) is not supported yet", kind, api_version),
                  "Remove the object; nothing would act on it", object);
      return;
    }
    std::vector<std::string_view> names;
    for (const KindInfo& info : all_kinds()) {
      if (info.name == kind) {
        std::string versions;
        for (std::string_view v : info.versions) {
          if (!versions.empty()) versions += ", ";
          versions += info.group.empty() ? std::string(v) : fmt::format("{}/{}", info.group, v);
        }
        plain_error(line, kCodeUnknownKind,
                    fmt::format("no kind {} in apiVersion {}", kind, api_version),
                    fmt::format("Write one of: {}", versions), object);
        return;
      }
      names.push_back(info.name);
    }
    std::string_view near = did_you_mean(kind, names);
    plain_error(line, kCodeUnknownKind, fmt::format("unknown kind {} ({})", kind, api_version),
                near.empty() ? fmt::format("Known kinds: {}", fmt::join(names, ", "))
                             : fmt::format("Did you mean `{}`?", near),
                object);
  }

  void object(const Value& document, const KindInfo& info, const std::string& api_version) {
    Object object;
    object.kind_ = info.kind;
    object.api_version_ = api_version;
    object.file_ = file_;
    object.line_ = document.line;
    auto lines = std::make_shared<std::map<std::string, int, std::less<>>>();
    collect_lines(document, "", lines.get());
    object.lines_ = lines;
    // The name first, so that every problem can say whose it is.
    const Value* metadata = document.find("metadata");
    if (metadata != nullptr && metadata->is_map()) {
      object.meta_.set_name(text_of(*metadata, "name"));
      object.meta_.set_namespace_(text_of(*metadata, "namespace"));
    }
    if (info.namespaced && object.meta_.namespace_().empty()) {
      object.meta_.set_namespace_(options_.default_namespace);
    }
    size_t problems_before = out_.problems.size();
    Decoder decoder(&object, &out_.problems, options_.refuse_pod_fields);
    if (metadata == nullptr || metadata->is_null()) {
      out_.problems.push_back(object.problem(Severity::kError, kCodeSchema, "metadata",
                                             "`metadata` is missing", "Add metadata.name"));
      return;
    }
    kube::ObjectMeta meta;
    decoder.message(*metadata, "metadata", &meta);
    if (info.namespaced && meta.namespace_().empty()) {
      meta.set_namespace_(options_.default_namespace);
    }
    check_meta(object, meta, info);
    object.meta_ = std::move(meta);
    std::unique_ptr<google::protobuf::Message> body(info.body->New());
    decoder.message(document, "", body.get(), {"apiVersion", "kind", "metadata"});
    object.body_ = std::move(body);
    for (size_t i = problems_before; i < out_.problems.size(); ++i) {
      if (out_.problems[i].severity != Severity::kError) continue;
      if (broken_ != nullptr) broken_->push_back(std::move(object));
      return;
    }
    if (options_.warn_ignored) note_ignored(object, decoder);
    out_.objects.push_back(std::move(object));
  }

  // Written by habit or by the API server: nobody who writes these counts on more than they do here.
  static bool is_usual(std::string_view path) {
    const std::string_view name = path.substr(path.rfind('.') + 1);
    for (std::string_view usual :
         {"image", "imagePullPolicy", "terminationMessagePath", "terminationMessagePolicy",
          "dnsPolicy", "schedulerName", "enableServiceLinks", "preemptionPolicy", "priority",
          "tolerations", "revisionHistoryLimit", "progressDeadlineSeconds", "strategy",
          "completionMode", "suspend", "podReplacementPolicy", "minReadySeconds", "medium",
          "recursiveReadOnly", "setHostnameAsFQDN", "tty", "expirationSeconds", "controllerName",
          "description", "type"}) {
      if (name == usual) return true;
    }
    return false;
  }

  void check_meta(const Object& object, const kube::ObjectMeta& meta, const KindInfo& info) {
    auto error = [&](std::string field, std::string message, std::string fix) {
      out_.problems.push_back(object.problem(Severity::kError, kCodeSchema, std::move(field),
                                             std::move(message), std::move(fix)));
    };
    if (meta.name().empty()) {
      if (!meta.generate_name().empty()) {
        error("metadata.generateName", "generateName is not supported", "Give metadata.name");
      } else {
        error("metadata.name", "an object needs a name", "Add metadata.name");
      }
    }
    if (!info.namespaced && !meta.namespace_().empty()) {
      error("metadata.namespace", fmt::format("{} objects have no namespace", info.name),
            "Remove metadata.namespace");
    }
  }

  // One finding for all of them; those that every manifest has are told to who asks only.
  void note_ignored(const Object& object, const Decoder& decoder) {
    for (Severity severity : {Severity::kWarning, Severity::kInfo}) {
      std::string message;
      std::string field;
      for (const auto& ignored : decoder.ignored()) {
        if (is_usual(ignored.path) != (severity == Severity::kInfo)) continue;
        if (field.empty()) field = ignored.path;
        message += fmt::format("{}{} ({})", message.empty() ? "accepted without effect: " : ", ",
                               ignored.path, ignored.note);
      }
      if (message.empty()) continue;
      out_.problems.push_back(
          object.problem(severity, kCodeIgnoredField, std::move(field), std::move(message), ""));
    }
  }

  std::string_view file_;
  const ReadOptions& options_;
  ReadResult& out_;
  std::vector<Object>* broken_;
};

ReadResult read_objects(std::string_view bytes, std::string_view file, const ReadOptions& options) {
  return read_objects(bytes, file, options, nullptr);
}

ReadResult read_objects(std::string_view bytes, std::string_view file, const ReadOptions& options,
                        std::vector<Object>* broken) {
  ReadResult out;
  ParsedDocuments parsed = parse_documents(bytes, file, options.limits);
  out.problems = std::move(parsed.problems);
  ObjectReader reader(file, options, &out, broken);
  for (const Value& document : parsed.documents) reader.document(document);
  return out;
}

}  // namespace meltemi::config
