// SPDX-License-Identifier: Apache-2.0
// Expert ids seen from outside: whoever is given to a model sees every choice of a training step and may replace it,
// which is how one run takes over the decisions of another. Routers and statistics do not know whether it happened.
#pragma once

#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "core/batch.h"
#include "moe/picks.h"

namespace conclave::moe {

// The experts of one micro-batch at one MoE layer, before any drop.
struct ExpertIds {
  Picks selected;                        // what is dispatched: by score and bias
  Picks unbiased;                        // by score alone: what the auxiliary losses count
  std::vector<uint8_t> declined_C = {};  // of the selected, see Choice
};

class ChoiceObserver {
 public:
  virtual ~ChoiceObserver() = default;
  // `layer` counts MoE layers. Returns whether it replaced the ids.
  virtual bool chosen(const Batch& batch, int layer, ExpertIds& ids) = 0;
};

// Keeps what it sees, by micro-batch and layer. Micro-batches are told apart by their number and their first global
// token id, so several steps may follow each other.
class ChoiceRecord : public ChoiceObserver {
 public:
  bool chosen(const Batch& batch, int layer, ExpertIds& ids) override;
  // Throws BugError for a micro-batch that was never seen.
  const ExpertIds& at(const Batch& batch, int layer) const;
  int64_t bytes() const;

 private:
  using Key = std::tuple<int64_t, int64_t, int>;
  static Key key(const Batch& batch, int layer);
  std::map<Key, ExpertIds> choices_;
};

// Compares with a record, and takes its ids over unless told only to look. The record may be shared by threads.
class ChoiceReplay : public ChoiceObserver {
 public:
  ChoiceReplay(const ChoiceRecord& record, bool replace) : record_(record), replace_(replace) {}
  bool chosen(const Batch& batch, int layer, ExpertIds& ids) override;
  // Tokens that are not padding and whose own experts, or their order, were others than the recorded ones.
  int64_t flips() const { return flips_; }
  // Tokens that were compared.
  int64_t compared() const { return compared_; }

 private:
  const ChoiceRecord& record_;
  bool replace_;
  int64_t flips_ = 0, compared_ = 0;
};

}  // namespace conclave::moe
