// One aggregated delta xDS stream per process, all types on it (facts: ztunnel §3). Reconnects for
// ever with backoff, resumes by version, and keeps what it has while the control plane is away.
// Handlers run on the client's own thread, one batch at a time. Never keeps resources, only names
// and versions; a LastGood keeps them on disk, and if the control plane does not answer at once after
// a start the handlers get those first.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/xds/channel.h"
#include "userspace/xds/last_good.h"

namespace meltemi::xds {

inline constexpr size_t kMaxMessageBytes = 200u << 20;  // of one response
// How long a start waits for the control plane before the saved state is served: above an answer's
// usual time (0.1 s), below what an app's connection notices.
inline constexpr Duration kAnswerPatience = std::chrono::milliseconds(500);

struct ReceivedResource {
  std::string_view name;
  std::string_view version;
  std::string_view body;  // the encoded message (Any.value); type was checked against type_url
};
// One response. Views live for the call. A name is at most once in the two lists together.
struct Update {
  std::string_view type_url;
  std::vector<ReceivedResource> resources;  // added or changed
  std::vector<std::string_view> removed;
  bool first_of_stream = false;  // first response for this type since (re)connecting
  bool saved = false;            // from the last good state on disk: nobody has confirmed it yet
};
struct Rejection {
  std::string name;
  std::string reason;  // "field x: ..."
};
// Applies the good resources and returns the others: the response is then NACKed with
// "name: reason; ..." and rejected names are asked for again after a reconnect.
using Handler = std::function<std::vector<Rejection>(const Update&)>;

enum class StreamState : uint8_t {
  kStopped,
  kConnecting,  // no stream yet, or none since the last one broke
  kConnected,   // the server answered at least once on this stream
};

struct ClientStatus {
  StreamState state = StreamState::kStopped;
  std::string last_error;  // of the last attempt that failed; "" after a success
  uint64_t connects = 0;   // streams that got an answer
  uint64_t failures = 0;   // attempts that failed, ever
  WallTime last_word{};    // when the control plane was last heard; of the saved state before that,
                           // and of the client's start if there is none
  bool serving_saved = false;  // the saved state is served, and no stream has answered yet
  std::string saved_refusal;   // why the saved state was not used; "" if it was, or there is none
  struct Type {
    std::string type_url;
    bool named = false;   // only names are asked for, of which there may be none
    bool synced = false;  // at least one response, or the saved state, was handled
    std::string refused;  // what is refused now, and why; "" if nothing is
    size_t resources = 0;
    uint64_t responses = 0, nacks = 0, bytes = 0;
  };
  std::vector<Type> types;
};

// 0 while the stream lives, else the time since the control plane's last word.
Duration staleness(const ClientStatus& status, WallTime now);
// For a readiness page: "" while the stream lives, else how old what is served is.
std::string staleness_note(const ClientStatus& status, WallTime now);

class DeltaClient {
 public:
  DeltaClient(ChannelOptions channel, Node node);
  ~DeltaClient();  // stops
  DeltaClient(const DeltaClient&) = delete;
  DeltaClient& operator=(const DeltaClient&) = delete;

  // Before start(). Wildcard: everything the server has for us, from the first request on.
  void subscribe(std::string_view type_url, Handler handler);
  // Before start(). Only names set by set_names(); types are asked for in the order of
  // registration.
  void subscribe_named(std::string_view type_url, Handler handler);
  // The whole set of names wanted now, any thread, handlers included. The difference is sent. A
  // name that is dropped is forgotten without a call of the handler.
  void set_names(std::string_view type_url, std::set<std::string> names);
  // Before start(). Keeps what handlers accept, and begins with what is kept.
  void keep(LastGoodOptions options);
  // Notes: what a subscriber concludes from its resources, kept with them so that neither outlives the
  // other. Before start(): what is kept of them is handed over before the saved resources are, on the
  // client's thread. Nothing without keep().
  void on_notes(std::string kind, std::function<void(const SavedResources&)> restore);
  // From a handler, or from `restore`: it is on disk no later than the resources of the same update. nullopt
  // takes the note back, and then it leaves the disk no sooner than those are there.
  void note(std::string_view name, std::optional<std::string> body);
  // Called on the client's thread whenever `state` changes. Before start().
  void on_state(std::function<void(StreamState)> listener);

  // Starts the thread; never fails when the server is away. Error kBadConfig: the address.
  // Call it from a thread in the process's own network namespace, as gRPC's threads inherit it.
  Status start();
  void stop();  // idempotent; joins. Not from a handler.
  ClientStatus status() const;
  // True when each wildcard type got its first response or its saved state (a named type without
  // names needs none).
  bool synced() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace meltemi::xds
