#include "userspace/cli/waypoint.h"

#include <algorithm>
#include <thread>

#include "userspace/cli/manifests.h"
#include "userspace/cli/objects.h"
#include "userspace/cli/table.h"
#include "userspace/config/analyze.h"
#include "userspace/config/validate.h"

namespace meltemi::cli {
namespace {

using config::Kind;
using config::Object;
using config::ObjectPtr;
using config::ObjectStore;
namespace kube = config::kube;

constexpr std::string_view kClass = "istio-waypoint";
constexpr std::string_view kOwnClass = "meltemi-waypoint";
constexpr std::string_view kUseWaypoint = "istio.io/use-waypoint";
constexpr std::string_view kWaypointFor = "istio.io/waypoint-for";
constexpr std::string_view kForServiceAccount = "istio.io/for-service-account";
constexpr std::string_view kDataplaneMode = "istio.io/dataplane-mode";
constexpr std::string_view kInjection = "istio-injection";
constexpr int32_t kHbonePort = 15008;

bool is_waypoint(const Object& gateway) {
  const auto& gateway_class = gateway.as<kube::Gateway>().spec().gateway_class_name();
  return gateway_class == kClass || gateway_class == kOwnClass;
}

std::vector<ObjectPtr> waypoints(const ObjectStore& store, std::string_view ns) {
  std::vector<ObjectPtr> out = store.list(Kind::kGateway, ns);
  std::erase_if(out, [](const ObjectPtr& g) { return !is_waypoint(*g); });
  return out;
}

const kube::Condition* condition(const Object& gateway, std::string_view type) {
  for (const kube::Condition& c : gateway.as<kube::Gateway>().status().conditions())
    if (c.type() == type) return &c;
  return nullptr;
}

std::string programmed(const Object& gateway) {
  const kube::Condition* c = condition(gateway, "Programmed");
  return c == nullptr ? "Unknown" : c->status();
}

std::string traffic_of(const Object& gateway) {
  const std::string_view traffic = gateway.label(kWaypointFor);
  if (!traffic.empty()) return std::string(traffic);
  return gateway.annotation(kForServiceAccount).empty() ? "service" : "all";
}

std::string revision_of(const Object& gateway) {
  const std::string_view revision = gateway.label("istio.io/rev");
  return revision.empty() ? "default" : std::string(revision);
}

bool is_ambient(const Object& ns) {
  const std::string_view mode = ns.label(kDataplaneMode);
  return mode == "ambient" || (mode.empty() && ns.label(kInjection) == "enabled");
}

Status check_enrolment(const Object& ns, const WaypointOptions& options) {
  const std::string_view old = ns.label(kUseWaypoint);
  if (old.empty() || old == options.name || options.overwrite) return {};
  return fail(Reason::kBadConfig, Fault::kConfig,
              fmt::format("namespace {} is enrolled with waypoint {} already. Add --overwrite to "
                          "change it",
                          ns.name(), old));
}

Status enroll(const Context& context, const WaypointOptions& options) {
  Manifests manifests = MELTEMI_TRY(Manifests::open(context));
  const std::string& ns = context.ns();
  const ObjectPtr before = manifests.user().find(Kind::kNamespace, "", ns);
  if (!before) return no_such_object(config::kind_info(Kind::kNamespace), ns);
  MELTEMI_TRY(check_enrolment(*before, options));
  Object object = *before;
  (*object.mutable_meta().mutable_labels())[std::string(kUseWaypoint)] = options.name;
  MELTEMI_TRY(manifests.write(object));
  print("namespace {} labeled with \"{}: {}\"\n", ns, kUseWaypoint, options.name);
  if (!is_ambient(object))
    complain(
        "warning: namespace {0} is not part of the mesh yet, so nothing goes through its waypoint. "
        "Enrol it: "
        "meltemi label ns {0} {1}=ambient\n",
        ns, kDataplaneMode);
  return {};
}

Status wait_programmed(const Context& context, const WaypointOptions& options) {
  sandbox::Directory directory = context.open(sandbox::View::kMerged);
  const MonoTime deadline = MonoClock::now() + options.timeout;
  while (true) {
    directory.refresh();
    const ObjectPtr gateway = directory.store().find(Kind::kGateway, context.ns(), options.name);
    if (gateway && programmed(*gateway) == "True") return {};
    if (MonoClock::now() > deadline) {
      const kube::Condition* c = gateway ? condition(*gateway, "Programmed") : nullptr;
      return fail(
          Reason::kRequestTimeout, Fault::kUpstream,
          fmt::format("waypoint {}/{} is not programmed after {} s{}{}{}", context.ns(), options.name,
                      options.timeout / std::chrono::seconds(1), c ? ": " : "",
                      c ? c->message() : "",
                      options.enroll_namespace ? ". The namespace was not labelled: its traffic goes "
                                                 "as before. Run the command again"
                                               : ""));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

Status apply(const Context& context, const WaypointOptions& options) {
  const Object gateway = MELTEMI_TRY(waypoint_gateway(context.ns(), options));
  {
    Manifests manifests = MELTEMI_TRY(Manifests::open(context));
    const ObjectPtr ns = manifests.user().find(Kind::kNamespace, "", context.ns());
    if (!ns)
      return fail(Reason::kNotFound, Fault::kConfig,
                  fmt::format("namespaces \"{0}\" not found. Create it: meltemi create ns {0}",
                              context.ns()));
    const ObjectPtr old = manifests.user().find(Kind::kGateway, context.ns(), options.name);
    if (old && !is_waypoint(*old))
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("{} exists and is no waypoint. Choose another --name",
                              old->key().to_string()));
    if (options.enroll_namespace) MELTEMI_TRY(check_enrolment(*ns, options));
    MELTEMI_TRY(manifests.apply(gateway));
    print("waypoint {}/{} applied\n", context.ns(), options.name);
    std::fflush(stdout);
    report(config::analyze_object(manifests.merged(), gateway.key()));
  }
  // A namespace that names a waypoint which is not there yet is refused service. So the label comes
  // last.
  if (options.wait || options.enroll_namespace) MELTEMI_TRY(wait_programmed(context, options));
  return options.enroll_namespace ? enroll(context, options) : Status();
}

Status remove(const Context& context, const WaypointOptions& options) {
  if (options.names.empty() && !options.all)
    return fail(Reason::kBadConfig, Fault::kConfig,
                "must either specify a waypoint name or delete all using --all");
  Manifests manifests = MELTEMI_TRY(Manifests::open(context));
  std::vector<std::string> names = options.names;
  if (options.all)
    for (const ObjectPtr& gateway : waypoints(manifests.user(), context.ns()))
      names.push_back(gateway->name());
  if (names.empty()) complain("No waypoints found in {} namespace.\n", context.ns());
  for (const std::string& name : names) {
    const ObjectPtr gateway = manifests.user().find(Kind::kGateway, context.ns(), name);
    if (!gateway) return no_such_object(config::kind_info(Kind::kGateway), name);
    if (!is_waypoint(*gateway))
      return fail(
          Reason::kBadConfig, Fault::kConfig,
          fmt::format("{} is no waypoint (class {}). Delete it with: meltemi delete gateway {}",
                      gateway->key().to_string(),
                      gateway->as<kube::Gateway>().spec().gateway_class_name(), name));
    MELTEMI_TRY(manifests.erase(gateway->key()));
    print("waypoint {}/{} deleted\n", context.ns(), name);
    const ObjectPtr ns = manifests.user().find(Kind::kNamespace, "", context.ns());
    if (ns && ns->label(kUseWaypoint) == name)
      complain(
          "warning: namespace {0} still names waypoint {1}: calls to its services are refused, since its "
          "policies are not asked. Remove the label: meltemi label ns {0} "
          "{2}-\n",
          context.ns(), name, kUseWaypoint);
  }
  return {};
}

}  // namespace

Result<Object> waypoint_gateway(const std::string& ns, const WaypointOptions& options) {
  if (options.name.empty() || options.name == "none")
    return fail(Reason::kBadConfig, Fault::kConfig,
                "\"none\" is a reserved waypoint name. Choose another --name");
  static constexpr std::string_view kTraffic[] = {"", "service", "workload", "all", "none"};
  if (std::find(std::begin(kTraffic), std::end(kTraffic), options.traffic) == std::end(kTraffic))
    return fail(
        Reason::kBadConfig, Fault::kConfig,
        fmt::format("invalid traffic type: {}. Valid options are: service, workload, all, none",
                    options.traffic));
  Object gateway = Object::make(Kind::kGateway, ns, options.name);
  auto& labels = *gateway.mutable_meta().mutable_labels();
  if (!options.traffic.empty()) labels[std::string(kWaypointFor)] = options.traffic;
  if (!options.service_account.empty()) {
    (*gateway.mutable_meta().mutable_annotations())[std::string(kForServiceAccount)] =
        options.service_account;
  }
  gateway.edit<kube::Gateway>([](kube::Gateway& body) {
    body.mutable_spec()->set_gateway_class_name(std::string(kClass));
    kube::GatewayListener* listener = body.mutable_spec()->add_listeners();
    listener->set_name("mesh");
    listener->set_port(kHbonePort);
    listener->set_protocol("HBONE");
  });
  const config::Problems problems = config::validate(gateway);
  if (has_errors(problems)) return fail(to_error(problems));
  return gateway;
}

int waypoint_generate(const Context& context, const WaypointOptions& options) {
  const auto gateway = waypoint_gateway(context.ns(), options);
  if (!gateway) return report(gateway.error());
  write_data(config::objects_to_yaml({*gateway}));
  return kExitOk;
}

int waypoint_apply(const Context& context, const WaypointOptions& options) {
  return finish(apply(context, options));
}
int waypoint_delete(const Context& context, const WaypointOptions& options) {
  return finish(remove(context, options));
}

int waypoint_list(const Context& context, const WaypointOptions& options) {
  const sandbox::Directory directory = context.open(sandbox::View::kMerged);
  const auto found = waypoints(directory.store(), options.all_namespaces ? "" : context.ns());
  if (found.empty()) {
    complain("No waypoints found.\n");
    return kExitOk;
  }
  std::vector<std::string> header{"NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"};
  if (options.all_namespaces) header.insert(header.begin(), "NAMESPACE");
  Table table(std::move(header));
  for (const ObjectPtr& gateway : found) {
    std::vector<std::string> row{gateway->name(), revision_of(*gateway), traffic_of(*gateway),
                                 programmed(*gateway)};
    if (options.all_namespaces) row.insert(row.begin(), gateway->ns());
    table.add(std::move(row));
  }
  print("{}", table.text());
  return kExitOk;
}

int waypoint_status(const Context& context, const WaypointOptions& options) {
  const sandbox::Directory directory = context.open(sandbox::View::kMerged);
  std::vector<std::string> header{"NAME", "STATUS", "TYPE", "REASON", "MESSAGE"};
  if (options.all_namespaces) header.insert(header.begin(), "NAMESPACE");
  Table table(std::move(header));
  bool all_programmed = true;
  for (const ObjectPtr& gateway :
       waypoints(directory.store(), options.all_namespaces ? "" : context.ns())) {
    if (!options.names.empty() && gateway->name() != options.names[0]) continue;
    const kube::Condition* c = condition(*gateway, "Programmed");
    all_programmed = all_programmed && c != nullptr && c->status() == "True";
    std::vector<std::string> row{
        gateway->name(), c == nullptr ? "Unknown" : c->status(), "Programmed",
        c == nullptr ? "Pending" : c->reason(),
        c == nullptr ? "the control plane has not looked at it yet" : c->message()};
    if (options.all_namespaces) row.insert(row.begin(), gateway->ns());
    table.add(std::move(row));
  }
  if (table.empty()) {
    complain("No waypoints found.\n");
    return options.names.empty() ? kExitOk : kExitFailure;
  }
  print("{}", table.text());
  return all_programmed ? kExitOk : kExitFailure;
}

}  // namespace meltemi::cli
