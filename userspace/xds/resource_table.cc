// See resource_table.h.
#include "userspace/xds/resource_table.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>

#include "envoy/service/discovery/v3/discovery.pb.h"

namespace meltemi::xds {
namespace {

constexpr size_t kTombstonesKept = 1024;  // below, trimming is not worth a walk
// Field 2 (resources), length-delimited.
constexpr uint32_t kResourcesTag = 2 << 3 | 2;

}  // namespace

namespace {

std::string on_the_wire(const envoy::service::discovery::v3::Resource& proto) {
  std::string wire;
  google::protobuf::io::StringOutputStream stream(&wire);
  google::protobuf::io::CodedOutputStream out(&stream);
  out.WriteTag(kResourcesTag);
  out.WriteVarint32(static_cast<uint32_t>(proto.ByteSizeLong()));
  proto.SerializeWithCachedSizes(&out);
  out.Trim();
  return wire;
}

}  // namespace

EncodedResource encode_resource(std::string_view type_url, std::string_view name,
                                std::string_view version, std::string_view body) {
  envoy::service::discovery::v3::Resource proto;
  proto.set_name(std::string(name));
  proto.set_version(std::string(version));
  proto.mutable_resource()->set_type_url(std::string(type_url));
  proto.mutable_resource()->set_value(std::string(body));
  return {std::string(version), grpc::Slice(on_the_wire(proto))};
}

grpc::Slice renamed(const EncodedResource& resource, const std::string& name) {
  google::protobuf::io::CodedInputStream in(resource.wire.begin(),
                                            static_cast<int>(resource.wire.size()));
  in.ReadTag();
  uint32_t size = 0;
  in.ReadVarint32(&size);
  envoy::service::discovery::v3::Resource proto;
  proto.ParseFromCodedStream(&in);
  proto.set_name(name);
  return grpc::Slice(on_the_wire(proto));
}

void ResourceTable::touch(Rows::value_type& entry) {
  if (entry.second.changed != 0) order_.erase(entry.second.changed);
  entry.second.changed = ++latest_;
  order_.emplace(latest_, &entry);
}

void ResourceTable::set_aliases(const std::string& name, Row& row,
                                std::vector<std::string> aliases) {
  for (const std::string& alias : row.aliases) {
    const auto it = by_alias_.find(alias);
    it->second.erase(name);
    if (it->second.empty()) by_alias_.erase(it);
  }
  for (const std::string& alias : aliases) by_alias_[alias].insert(name);
  std::ranges::sort(aliases);
  const auto repeated = std::ranges::unique(aliases);
  aliases.erase(repeated.begin(), repeated.end());
  row.aliases = std::move(aliases);
}

const std::set<std::string>& ResourceTable::named(const std::string& alias) const {
  static const std::set<std::string> nobody;
  const auto it = by_alias_.find(alias);
  return it == by_alias_.end() ? nobody : it->second;
}

bool ResourceTable::set(const std::string& name, EncodedResource resource,
                        std::vector<std::string> aliases) {
  auto& entry = *rows_.try_emplace(name).first;
  if (entry.second.live && entry.second.resource.version == resource.version) return false;
  if (!entry.second.live) ++live_;
  entry.second.live = true;
  entry.second.resource = std::move(resource);
  set_aliases(name, entry.second, std::move(aliases));
  touch(entry);
  return true;
}

bool ResourceTable::remove(const std::string& name) {
  const auto it = rows_.find(name);
  if (it == rows_.end() || !it->second.live) return false;
  it->second.live = false;
  it->second.resource = {};
  --live_;
  touch(*it);
  return true;
}

const ResourceTable::Row* ResourceTable::find(const std::string& name) const {
  const auto it = rows_.find(name);
  return it == rows_.end() ? nullptr : &it->second;
}

ResourceTable::Cursor ResourceTable::add_cursor() {
  std::erase_if(cursors_, [](const Cursor& cursor) { return cursor.use_count() == 1; });
  return cursors_.emplace_back(std::make_shared<std::atomic<uint64_t>>(0));
}

void ResourceTable::trim() {
  const size_t tombstones = rows_.size() - live_;
  if (tombstones < kTombstonesKept || tombstones < live_ / 4) return;
  std::erase_if(cursors_, [](const Cursor& cursor) { return cursor.use_count() == 1; });
  uint64_t passed = latest_;
  for (const Cursor& cursor : cursors_) passed = std::min(passed, cursor->load());
  for (auto it = order_.begin(); it != order_.end() && it->first <= passed;) {
    if (it->second->second.live) {
      ++it;
      continue;
    }
    const std::string name = it->second->first;
    it = order_.erase(it);
    set_aliases(name, rows_.at(name), {});
    rows_.erase(name);
  }
}

}  // namespace meltemi::xds
