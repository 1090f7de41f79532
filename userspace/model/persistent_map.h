// A hash map with cheap snapshots: copying it shares everything, an edit copies only the path to the
// entry (a CHAMP trie, 32-way). One thread edits its copy while others read theirs without locks.
// Each subtree also sums its entries' weights, so that a weighted random choice among n entries
// takes O(log n). Must never be edited through a copy that another thread reads.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "userspace/model/symbol.h"

namespace meltemi::model {

struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return hash_text(text); }
  size_t operator()(const Symbol& s) const { return s.hash(); }
};

struct WeighOne {
  template <typename V>
  uint64_t operator()(const V&) const {
    return 1;
  }
};

// `Hash` hashes K and whatever find() is called with; those must compare equal to K by ==.
// `Weigh(const V&)` is pure and its sum fits 64 bits.
template <typename K, typename V, typename Hash = TextHash, typename Weigh = WeighOne>
class PersistentMap {
 public:
  struct Entry {
    K key;
    V value;
  };

  size_t size() const { return root_ ? root_->count : 0; }
  bool empty() const { return size() == 0; }
  uint64_t weight() const { return root_ ? root_->weight : 0; }

  // nullptr if absent. Valid until this map is edited or destroyed.
  template <typename Q>
  const V* find(const Q& key) const {
    const size_t hash = Hash()(key);
    const Node* node = root_.get();
    for (unsigned depth = 0; node; ++depth) {
      if (depth == kMaxDepth) {
        for (const Entry& e : node->entries) {
          if (e.key == key) return &e.value;
        }
        return nullptr;
      }
      const uint32_t bit = bit_of(hash, depth);
      if (node->entry_map & bit) {
        const Entry& e = node->entries[index_of(node->entry_map, bit)];
        return e.key == key ? &e.value : nullptr;
      }
      if (!(node->child_map & bit)) return nullptr;
      node = node->children[index_of(node->child_map, bit)].get();
    }
    return nullptr;
  }

  void set(K key, V value) {
    const size_t hash = Hash()(key);
    if (!root_) root_ = Ref(new Node());
    put(root_, 0, hash, Entry{std::move(key), std::move(value)});
  }

  // True if the key was there.
  template <typename Q>
  bool erase(const Q& key) {
    if (!find(key)) return false;
    remove(root_, 0, Hash()(key), key);
    if (root_->count == 0) root_ = Ref();
    return true;
  }

  // The entry that owns position `at` of [0, weight()); nullptr if beyond.
  const Entry* pick(uint64_t at) const {
    const Node* node = root_.get();
    if (!node || at >= node->weight) return nullptr;
    for (;;) {
      for (const Entry& e : node->entries) {
        const uint64_t w = Weigh()(e.value);
        if (at < w) return &e;
        at -= w;
      }
      const Node* next = nullptr;
      for (const Ref& child : node->children) {
        if (at < child->weight) {
          next = child.get();
          break;
        }
        at -= child->weight;
      }
      if (!next) return nullptr;
      node = next;
    }
  }

  template <typename F>
  void for_each(F&& fn) const {
    if (root_) visit(*root_, fn);
  }

 private:
  static constexpr unsigned kBits = 5;
  static constexpr unsigned kMaxDepth = 12;  // 60 bits of hash, then a plain list

  struct Node;
  // Counted reference. Only the editor asks unique(); an acquire load pairs with the release of the
  // last reader that let go.
  class Ref {
   public:
    Ref() = default;
    explicit Ref(Node* node) : node_(node) {}
    Ref(const Ref& o) noexcept : node_(o.node_) {
      if (node_) node_->refs.fetch_add(1, std::memory_order_relaxed);
    }
    Ref(Ref&& o) noexcept : node_(std::exchange(o.node_, nullptr)) {}
    Ref& operator=(Ref o) noexcept {
      std::swap(node_, o.node_);
      return *this;
    }
    ~Ref() {
      if (node_ && node_->refs.fetch_sub(1, std::memory_order_acq_rel) == 1) delete node_;
    }
    Node* get() const { return node_; }
    Node* operator->() const { return node_; }
    Node& operator*() const { return *node_; }
    explicit operator bool() const { return node_ != nullptr; }
    bool unique() const { return node_->refs.load(std::memory_order_acquire) == 1; }

   private:
    Node* node_ = nullptr;
  };
  struct Node {
    Node() = default;
    Node(const Node& o)
        : entry_map(o.entry_map),
          child_map(o.child_map),
          weight(o.weight),
          count(o.count),
          entries(o.entries),
          children(o.children) {}
    std::atomic<uint32_t> refs{1};
    uint32_t entry_map = 0, child_map = 0;  // disjoint; unused at kMaxDepth
    uint64_t weight = 0;
    size_t count = 0;
    std::vector<Entry> entries;
    std::vector<Ref> children;
  };

  static uint32_t bit_of(size_t hash, unsigned depth) {
    return 1u << ((hash >> (kBits * depth)) & 31);
  }
  static size_t index_of(uint32_t map, uint32_t bit) { return std::popcount(map & (bit - 1)); }

  static Node& own(Ref& ref) {
    if (!ref.unique()) ref = Ref(new Node(*ref));
    return *ref;
  }
  static void add_entry(Node& node, size_t at, Entry entry) {
    node.weight += Weigh()(entry.value);
    node.count += 1;
    node.entries.insert(node.entries.begin() + at, std::move(entry));
  }
  static void replace(Node& node, Entry& slot, Entry entry) {
    node.weight += Weigh()(entry.value) - Weigh()(slot.value);
    slot = std::move(entry);
  }

  static void put(Ref& ref, unsigned depth, size_t hash, Entry entry) {
    Node& node = own(ref);
    if (depth == kMaxDepth) {
      for (Entry& e : node.entries) {
        if (e.key == entry.key) return replace(node, e, std::move(entry));
      }
      return add_entry(node, node.entries.size(), std::move(entry));
    }
    const uint32_t bit = bit_of(hash, depth);
    if (node.child_map & bit) {
      Ref& child = node.children[index_of(node.child_map, bit)];
      const uint64_t weight = child->weight;
      const size_t count = child->count;
      put(child, depth + 1, hash, std::move(entry));
      node.weight += child->weight - weight;
      node.count += child->count - count;
      return;
    }
    const size_t at = index_of(node.entry_map, bit);
    if (!(node.entry_map & bit)) {
      node.entry_map |= bit;
      return add_entry(node, at, std::move(entry));
    }
    if (node.entries[at].key == entry.key) {
      return replace(node, node.entries[at], std::move(entry));
    }
    // Two keys share this slot: both move one level down.
    Entry old = std::move(node.entries[at]);
    node.entries.erase(node.entries.begin() + at);
    node.entry_map &= ~bit;
    const uint64_t old_weight = Weigh()(old.value);
    const size_t old_hash = Hash()(old.key);
    Ref child(new Node());
    put(child, depth + 1, old_hash, std::move(old));
    put(child, depth + 1, hash, std::move(entry));
    node.weight += child->weight - old_weight;
    node.count += 1;
    node.child_map |= bit;
    node.children.insert(node.children.begin() + index_of(node.child_map, bit), std::move(child));
  }

  static void drop_entry(Node& node, size_t at) {
    node.weight -= Weigh()(node.entries[at].value);
    node.count -= 1;
    node.entries.erase(node.entries.begin() + at);
  }

  // REQUIRES: the key is there.
  template <typename Q>
  static void remove(Ref& ref, unsigned depth, size_t hash, const Q& key) {
    Node& node = own(ref);
    if (depth == kMaxDepth) {
      for (size_t i = 0; i < node.entries.size(); ++i) {
        if (node.entries[i].key == key) return drop_entry(node, i);
      }
      return;
    }
    const uint32_t bit = bit_of(hash, depth);
    if (node.entry_map & bit) {
      drop_entry(node, index_of(node.entry_map, bit));
      node.entry_map &= ~bit;
      return;
    }
    const size_t at = index_of(node.child_map, bit);
    Ref& child = node.children[at];
    const uint64_t weight = child->weight;
    remove(child, depth + 1, hash, key);
    node.weight -= weight - child->weight;
    node.count -= 1;
    if (child->count == 1 && child->children.empty()) {
      // A lone entry moves back up, so that equal contents have equal shape.
      Entry last = child->entries.front();
      node.children.erase(node.children.begin() + at);
      node.child_map &= ~bit;
      node.entries.insert(node.entries.begin() + index_of(node.entry_map, bit), std::move(last));
      node.entry_map |= bit;
    }
  }

  template <typename F>
  static void visit(const Node& node, F& fn) {
    for (const Entry& e : node.entries) fn(e.key, e.value);
    for (const Ref& child : node.children) visit(*child, fn);
  }

  Ref root_;
};

}  // namespace meltemi::model
