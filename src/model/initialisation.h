// SPDX-License-Identifier: Apache-2.0
// How each kind of parameter is drawn and how fast it learns, for every choice of `model.init`, and with `mup` the
// factors of logits, attention scores and gates. Numbers alone; the builder uses them, `conclave info` prints them.
//
// mup: the maximal update parametrisation (Yang and Hu 2021, arXiv 2203.03466) with AdamW, for experts as in arXiv
// 2508.09752. n inputs of a matrix, D hidden_size, H head_dim, E experts, bars for the base sizes of `model.mup`:
//
//                            deviation   learning rate
//   matrices of a block      1 / √n      n̄ / n           n = D, an FFN's or expert's width for its down projection
//   router, gates            1 / √D      n̄ / D           (a router that sees its context: 2D)
//   embedding, vectors       init_std    1
//   head                     0           1               logits times n̄ / D; tied: the embedding
//   attention                                            scores q·k times √H̄ / H
//   softmax over all experts, weights not normalised     weights times s(k/Ē) / s(k/E)
//
// fan_in: Switch's scale (Fedus et al. 2021, arXiv 2101.03961, section 2.4): every matrix of a block, router and head
// is drawn from a normal distribution cut off at two deviations, with variance init_scale / n after the cut, n its
// inputs. Embeddings and vectors have init_std.
//
// s(f) = Φ(1 − Φ⁻¹(1 − f)) is what the largest weights add up to, a fraction f of very many that are a softmax of
// standard normal logits, as routers begin; without the factor a token's weights would add up to less the more experts
// there are.
#pragma once

#include <optional>

#include "model/model_shape.h"

namespace conclave::model {

// Of a parameter's elements.
struct Draw {
  double std = 0;          // of what is drawn, from a normal distribution
  double lr_scale = 1;     // times the learning rate of the run
  bool truncated = false;  // nothing beyond two deviations of the normal (truncated_normal.h)
};

class Initialisation {
 public:
  // `layers`: of the model.
  Initialisation(const ModelConfig& model, int64_t layers);
  // A matrix of a block with so many inputs.
  Draw matrix(int64_t inputs) const;
  // One whose output is added to the residual stream.
  Draw residual(int64_t inputs) const;
  Draw embedding() const { return {std_, 1}; }
  // One of its own, not the embedding. Drawn ones would add to logits what falls with the width.
  Draw head() const;
  double logit_scale() const;
  // Of q·k; none: 1 / √H.
  std::optional<double> score_scale(int64_t head_dim) const;
  // Times the weights of a token's experts.
  double weight_scale(const moe::MoeConfig& moe, const LayerShape& layer) const;

 private:
  bool mup_, fan_in_;
  double scale_;  // of fan_in
  MupConfig base_;
  int64_t hidden_;
  double std_, residual_std_;
};

// Whether the weights of a token's experts are parts of a softmax over all of them, so that more experts make each
// smaller.
bool weights_share_one(const moe::MoeConfig& moe);

}  // namespace conclave::model
