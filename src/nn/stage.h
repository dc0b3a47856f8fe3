// SPDX-License-Identifier: Apache-2.0
// A stage: a piece of the model with explicit forward and backward, wired to others by slots. There is no autograd
// graph between stages; an executor calls them, in order or against those of another micro-batch.
#pragma once

#include <string>
#include <vector>

#include "nn/frame.h"

namespace conclave::nn {

// What every stage is built from.
struct StageSite {
  std::string name;  // "layers.3.attention"
  int index = 0;     // position in the model, names the stage's place in a frame
};

// The two slots of a stage with one input and one output.
struct Wire {
  Slot input, output;
};

// Which choices of `memory.recompute` drop a stage's results after forward and make them again in backward.
enum class Redo {
  kNever,      // none: a decision, or nothing that is worth it
  kAlways,     // all: as cheap as reading it
  kSelective,  // all but `none`: no matrix product
  kAttention,  // `attention` and `full`
  kFfn,        // `ffn` and `full`
  kFull,       // `full`
};

class Stage {
 public:
  explicit Stage(StageSite site) : site_(std::move(site)) {}
  virtual ~Stage() = default;
  const std::string& name() const { return site_.name; }
  int index() const { return site_.index; }

  virtual std::vector<Slot> inputs() const = 0;
  virtual std::vector<Slot> outputs() const = 0;
  // Whose values the stage reads and whose gradients it writes.
  virtual std::vector<ParameterId> parameters() const { return {}; }
  // Whether backward reads the values of the inputs; if no reader does, they are freed after their last forward.
  virtual bool backward_reads_inputs() const { return true; }
  virtual Redo redo() const { return Redo::kNever; }
  // Makes the outputs and what backward needs again, with the bits of forward, from the inputs and what was kept.
  virtual void forward_again(Frame& frame) { forward(frame); }
  // Reads the inputs' values, sets the outputs'.
  virtual void forward(Frame& frame) = 0;
  // Reads the outputs' gradients, adds to the inputs': once to each, so that an executor may compute what is added
  // before it is its turn to be added.
  virtual void backward_input(Frame& frame) = 0;
  // Adds to the parameters' gradients. May come any time after backward_input; frees what the stage saved.
  virtual void backward_weight(Frame& frame) { frame.forget(index()); }

 private:
  StageSite site_;
};

// A stage that communicates. start and finish are issued in the same order on all ranks; other stages may run between
// them.
class ExchangeStage : public Stage {
 public:
  using Stage::Stage;
  virtual void start_forward(Frame& frame) = 0;
  virtual void finish_forward(Frame& frame) = 0;
  virtual void start_backward(Frame& frame) = 0;
  virtual void finish_backward(Frame& frame) = 0;
  // The halves of forward_again.
  virtual void start_again(Frame& frame) { start_forward(frame); }
  virtual void finish_again(Frame& frame) { finish_forward(frame); }
  void forward(Frame& frame) final {
    start_forward(frame);
    finish_forward(frame);
  }
  void forward_again(Frame& frame) final {
    start_again(frame);
    finish_again(frame);
  }
  void backward_input(Frame& frame) final {
    start_backward(frame);
    finish_backward(frame);
  }
};

}  // namespace conclave::nn
