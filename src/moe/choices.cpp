// SPDX-License-Identifier: Apache-2.0
#include "moe/choices.h"

#include <algorithm>

#include "core/error.h"

namespace conclave::moe {

ChoiceRecord::Key ChoiceRecord::key(const Batch& batch, int layer) {
  return {batch.index, batch.global_token_ids.at(0), layer};
}

bool ChoiceRecord::chosen(const Batch& batch, int layer, ExpertIds& ids) {
  choices_[key(batch, layer)] = ids;
  return false;
}

const ExpertIds& ChoiceRecord::at(const Batch& batch, int layer) const {
  const auto found = choices_.find(key(batch, layer));
  check(found != choices_.end(), "expert ids are replayed for micro-batches that were recorded");
  return found->second;
}

int64_t ChoiceRecord::bytes() const {
  int64_t bytes = 0;
  for (const auto& [key, ids] : choices_)
    for (const Picks* picks : {&ids.selected, &ids.unbiased})
      bytes += static_cast<int64_t>((picks->ids_C.size() + picks->offsets_T1.size()) * sizeof(int32_t));
  return bytes;
}

bool ChoiceReplay::chosen(const Batch& batch, int layer, ExpertIds& ids) {
  const ExpertIds& recorded = record_.at(batch, layer);
  check(recorded.selected.tokens() == ids.selected.tokens(), "a replayed micro-batch has the size of the recorded one");
  for (int64_t t = 0; t < batch.tokens_count(); ++t) {
    if (batch.segment_ids[t] < 0) continue;
    ++compared_;
    const auto own = ids.selected.of(t), other = recorded.selected.of(t);
    flips_ += !std::equal(own.begin(), own.end(), other.begin(), other.end());
  }
  if (replace_) ids = recorded;
  return replace_;
}

}  // namespace conclave::moe
