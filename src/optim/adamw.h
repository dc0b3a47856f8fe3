// SPDX-License-Identifier: Apache-2.0
// AdamW (Loshchilov and Hutter 2019) over ranges of one flat buffer of parameters: those that a rank owns, whose
// gradients and moments lie one after another. It knows neither names nor ranks.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "core/tensor.h"
#include "optim/optim_config.h"

namespace conclave::optim {

// Elements with the same treatment: where they are in the parameters, and in gradients and moments.
struct Range {
  int64_t begin = 0, at = 0, count = 0;
  bool decay = true;
  double lr_scale = 1;  // multiplies the learning rate, and not the decay
};

struct StepSize {
  double lr = 0;
  int64_t update = 1;     // updates applied so far, this one included: bias correction
  double grad_scale = 1;  // one division by the token count, and clipping
};

class AdamW {
 public:
  // `ranges` of `parameters` cover what is trained here, `owned` elements with what lies between; neighbours with the
  // same treatment are merged.
  AdamW(const OptimConfig& config, const Tensor& parameters, int64_t owned, const std::vector<Range>& ranges);
  // On a device one launch updates all ranges with the same lr_scale. `copy`, bf16 and as long as the parameters, gets
  // what was updated.
  void step(Tensor& parameters, const Tensor& gradients, const StepSize& size, const Tensor& copy = {});
  Tensor& first_moment() { return m_; }
  Tensor& second_moment() { return v_; }

 private:
  OptimConfig config_;
  std::vector<Range> ranges_;
  Tensor m_, v_;
  std::map<double, Tensor> blocks_;  // of all ranges by lr_scale, where the parameters are on a device
};

}  // namespace conclave::optim
