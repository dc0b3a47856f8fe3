// SPDX-License-Identifier: Apache-2.0
// The whole configuration of a run. Read strictly from YAML, checked across sections by resolve(), const afterwards.
#pragma once

#include "checkpoint/checkpoint_config.h"
#include "comm/comm_config.h"
#include "data/data_config.h"
#include "model/model_config.h"
#include "moe/moe_config.h"
#include "optim/optim_config.h"
#include "parallel/parallel_config.h"
#include "train/train_config.h"

namespace conclave::train {

struct RunConfig {
  model::ModelConfig model;
  moe::MoeConfig moe;
  parallel::ParallelConfig parallel;
  data::DataConfig data;
  optim::OptimConfig optim;
  TrainConfig train;
  EvalConfig eval;
  checkpoint::CheckpointConfig checkpoint;
  MetricsConfig metrics;
  MemoryConfig memory;
  comm::CommConfig comm;

  void fields(auto&& field) {
    field("model", model, "the decoder");
    field("moe", moe, "mixture-of-experts layers");
    field("parallel", parallel, "how ranks share the work");
    field("data", data, "token sources");
    field("optim", optim, "optimizer and schedule");
    field("train", train, "length, batch, precision");
    field("eval", eval, "validation");
    field("checkpoint", checkpoint, "saving and resuming");
    field("metrics", metrics, "what is written how often");
    field("memory", memory, "memory against time");
    field("comm", comm, "transport");
  }
};

}  // namespace conclave::train
