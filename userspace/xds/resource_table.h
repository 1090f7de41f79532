// What the server serves of one type to one scope: every resource encoded once, and the order in which
// names last changed. A stream remembers how far it has come in that order; what lies behind is what it
// still has to be told, each name once and in its newest state, however long it was away. Private to xds;
// not thread-safe.
#pragma once

#include <grpcpp/support/slice.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace meltemi::xds {

// One `resources` entry of a DeltaDiscoveryResponse, as it stands on the wire (tag and length too).
struct EncodedResource {
  std::string version;
  grpc::Slice wire;  // reference counted: streams share it
};
// The same resource under another of its names.
grpc::Slice renamed(const EncodedResource& resource, const std::string& name);
EncodedResource encode_resource(std::string_view type_url, std::string_view name,
                                std::string_view version, std::string_view body);

class ResourceTable {
 public:
  struct Row {
    EncodedResource resource;
    bool live = false;      // false: a tombstone, kept until every stream was told
    uint64_t changed = 0;   // position in the order of changes
    std::vector<std::string> aliases;  // kept by a tombstone: who follows one is told its end
  };
  using Rows = std::unordered_map<std::string, Row>;
  using Order = std::map<uint64_t, const Rows::value_type*>;
  // How far a stream has come; shared so that tombstones can be dropped when all have passed.
  using Cursor = std::shared_ptr<std::atomic<uint64_t>>;

  // False: nothing changed (same version, or not there).
  bool set(const std::string& name, EncodedResource resource, std::vector<std::string> aliases = {});
  bool remove(const std::string& name);

  const Row* find(const std::string& name) const;
  // Names of the rows, dead ones too, that have this alias.
  const std::set<std::string>& named(const std::string& alias) const;
  uint64_t latest() const { return latest_; }
  size_t live() const { return live_; }
  // Changes after `position`, oldest first.
  Order::const_iterator after(uint64_t position) const { return order_.upper_bound(position); }
  Order::const_iterator end() const { return order_.end(); }

  Cursor add_cursor();
  // Drops tombstones that every cursor has passed, when they have become many.
  void trim();

 private:
  void touch(Rows::value_type& entry);
  void set_aliases(const std::string& name, Row& row, std::vector<std::string> aliases);
  Rows rows_;
  std::unordered_map<std::string, std::set<std::string>> by_alias_;
  Order order_;
  uint64_t latest_ = 0;
  size_t live_ = 0;
  std::vector<Cursor> cursors_;
};

}  // namespace meltemi::xds
