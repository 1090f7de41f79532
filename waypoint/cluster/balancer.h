// Chooses an endpoint. One per cluster and worker; knows weights, health and priority, and asks for
// active counts. Pure but for its own cursor: randomness is an argument. Must never choose an
// unhealthy endpoint, nor one that a retry has just failed on while another is there.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "userspace/model/types.h"
#include "waypoint/cluster/cluster.h"

namespace meltemi::waypoint {

class Balancer {
 public:
  static constexpr int kNone = -1;
  static constexpr uint32_t kMaxReselect = 5;  // draws that may be thrown away for a previous host

  // Takes over a new set of endpoints; indices of pick() are those of `endpoints`.
  void update(std::span<const Endpoint> endpoints);

  // `active`: requests in flight per endpoint, same length as the endpoints. `avoid`: indices that
  // earlier attempts used. Returns an index or kNone when nothing is healthy.
  int pick(LbPolicy policy, uint32_t choice_count, std::span<const uint32_t> active,
           std::span<const int> avoid, model::Random& random);

  // The endpoint of a client that is to keep to one: the same in every worker and every waypoint that
  // knows the same endpoints, whatever their order. One that leaves moves its own clients only, one
  // that comes takes its share from all. kNone as above; `avoid` sends the client to its second choice,
  // then its third. Linear in the number of endpoints.
  int pick_for(const IpAddress& client, std::span<const int> avoid) const;

  bool empty() const { return total_ == 0; }
  size_t eligible() const { return eligible_.size(); }

 private:
  int draw(LbPolicy policy, uint32_t choice_count, std::span<const uint32_t> active,
           model::Random& random);
  int at_point(uint64_t point) const;  // REQUIRES: point < total_

  std::vector<int> eligible_;       // of the first priority that has any
  std::vector<uint32_t> weight_;    // of eligible_[i]
  std::vector<uint64_t> up_to_;     // running sums of weight_
  std::vector<uint64_t> self_;      // what eligible_[i] is, whoever asks and wherever it stands
  uint64_t total_ = 0;
  uint64_t turn_ = 0;
  bool equal_weights_ = true;
};

}  // namespace meltemi::waypoint
