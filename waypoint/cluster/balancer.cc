#include "waypoint/cluster/balancer.h"

#include <algorithm>
#include <cmath>

namespace meltemi::waypoint {
namespace {

// The finaliser of SplitMix64: each bit of the input moves half of the bits.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Not std::hash, which may differ between builds: two waypoints must agree.
uint64_t mix(const IpAddress& ip, uint64_t seed) {
  for (size_t at = 0; at < ip.bytes().size(); at += 8) {
    uint64_t half = 0;
    for (size_t i = 0; i < 8; ++i) half = half << 8 | ip.bytes()[at + i];
    seed = mix((seed ^ half) + 0x9E3779B97F4A7C15ull);
  }
  return seed;
}

// The pod, not its port: a client keeps to one pod for all ports of a Service. Behind another waypoint
// the pods that are dialled are told apart by where the tunnel leads.
uint64_t self_of(const Endpoint& e) {
  return mix(e.address.ip, e.tunnel ? mix(e.tunnel->ip, 0) : 0);
}

}  // namespace

void Balancer::update(std::span<const Endpoint> endpoints) {
  eligible_.clear();
  weight_.clear();
  up_to_.clear();
  self_.clear();
  total_ = 0;
  equal_weights_ = true;
  // The healthiest endpoints of the lowest priority that has any; degraded ones only when no
  // priority has a healthy one.
  for (const Health wanted : {Health::kHealthy, Health::kDegraded}) {
    uint32_t priority = UINT32_MAX;
    for (const Endpoint& e : endpoints) {
      if (e.health == wanted) priority = std::min(priority, e.priority);
    }
    for (size_t i = 0; i < endpoints.size(); ++i) {
      const Endpoint& e = endpoints[i];
      if (e.health != wanted || e.priority != priority) continue;
      eligible_.push_back(static_cast<int>(i));
      weight_.push_back(e.weight);
      total_ += e.weight;
      up_to_.push_back(total_);
      self_.push_back(self_of(e));
      equal_weights_ = equal_weights_ && e.weight == weight_.front();
    }
    if (!eligible_.empty()) return;
  }
}

int Balancer::at_point(uint64_t point) const {
  return static_cast<int>(std::upper_bound(up_to_.begin(), up_to_.end(), point) - up_to_.begin());
}

int Balancer::draw(LbPolicy policy, uint32_t choice_count, std::span<const uint32_t> active,
                   model::Random& random) {
  const size_t n = eligible_.size();
  const auto any = [&] {
    return equal_weights_ ? static_cast<int>(random.below(n)) : at_point(random.below(total_));
  };
  switch (policy) {
    case LbPolicy::kRandom: return any();
    case LbPolicy::kRoundRobin: {
      const uint64_t turn = turn_++;
      if (equal_weights_) return static_cast<int>(turn % n);
      // Multiples of the golden ratio fall evenly on the circle of weights: each endpoint gets its
      // share, spread out, without a heap.
      constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;
      return at_point(static_cast<uint64_t>(
          (static_cast<unsigned __int128>(turn * kGolden) * total_) >> 64));
    }
    case LbPolicy::kLeastRequest: {
      int best = any();
      const auto load = [&](int i) {  // (active + 1) / weight, without the division
        return static_cast<uint64_t>(active[static_cast<size_t>(eligible_[static_cast<size_t>(i)])]) + 1;
      };
      for (uint32_t c = 1; c < choice_count; ++c) {
        const int other = any();
        if (load(other) * weight_[static_cast<size_t>(best)] <
            load(best) * weight_[static_cast<size_t>(other)]) {
          best = other;
        }
      }
      return best;
    }
  }
  return 0;
}

int Balancer::pick(LbPolicy policy, uint32_t choice_count, std::span<const uint32_t> active,
                   std::span<const int> avoid, model::Random& random) {
  if (eligible_.empty()) return kNone;
  if (eligible_.size() == 1) return eligible_.front();
  const auto avoided = [avoid](int index) {
    return std::find(avoid.begin(), avoid.end(), index) != avoid.end();
  };
  int index = kNone;
  for (uint32_t attempt = 0; attempt <= kMaxReselect; ++attempt) {
    index = eligible_[static_cast<size_t>(draw(policy, choice_count, active, random))];
    if (!avoided(index)) return index;
  }
  // Bad luck with the draws: take any that was not tried; else the last draw has to do.
  const auto fresh = std::find_if_not(eligible_.begin(), eligible_.end(), avoided);
  return fresh == eligible_.end() ? index : *fresh;
}

// Rendezvous hashing: each endpoint draws a number for the client, the highest wins.
int Balancer::pick_for(const IpAddress& client, std::span<const int> avoid) const {
  const uint64_t key = mix(client, 0x6A09E667F3BCC908ull);
  // Of two classes, those that were not tried and those that were, the winner of each.
  int best[2] = {kNone, kNone};
  double highest[2] = {};
  for (size_t i = 0; i < eligible_.size(); ++i) {
    const bool tried = std::find(avoid.begin(), avoid.end(), eligible_[i]) != avoid.end();
    // In (0, 1), so that its logarithm is finite and below 0.
    const double drawn = (static_cast<double>(mix(key ^ self_[i]) >> 12) + 0.5) * 0x1p-52;
    // -weight/log(drawn) grows with both: an endpoint wins in proportion to its weight.
    const double score = equal_weights_ ? drawn : -static_cast<double>(weight_[i]) / std::log(drawn);
    if (best[tried] != kNone && score <= highest[tried]) continue;
    best[tried] = eligible_[i];
    highest[tried] = score;
  }
  return best[0] != kNone ? best[0] : best[1];
}

}  // namespace meltemi::waypoint
