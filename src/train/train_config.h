// SPDX-License-Identifier: Apache-2.0
// The `train:`, `eval:` and `metrics:` sections.
#pragma once

#include "config/types.h"

namespace conclave::train {

struct DistillConfig {
  std::string teacher;  // required
  double weight = 0.5;
  double temperature = 1.0;

  void fields(auto&& field) {
    field("teacher", teacher, "a run or checkpoint with this run's vocabulary and tokenizer, dense or MoE",
          config::kRequired);
    field("weight", weight, "share a of the loss (1 - a) CE + a temperature^2 KL(teacher || student)",
          config::Rule{.min = 0, .max = 1});
    field("temperature", temperature, "divides the logits of both in KL", config::kPositive);
  }
};

struct TrainConfig {
  int64_t steps = 1000;
  int64_t global_batch_size = 8;
  int64_t micro_batch_size = 1;
  std::string precision = "auto";
  int64_t seed = 1;
  std::string device = "auto";
  std::optional<config::Duration> max_time;
  config::Duration hang_timeout{600};
  std::optional<std::string> profile;
  std::optional<DistillConfig> distill;

  void fields(auto&& field) {
    field("steps", steps, "optimizer steps of the run", config::kSize);
    field("global_batch_size", global_batch_size, "sequences in an optimizer step, over all ranks", config::kSize);
    field("micro_batch_size", micro_batch_size, "sequences a rank holds at a time; divides global_batch_size / dp",
          config::kSize);
    field("precision", precision,
          "auto, fp32 or bf16 (with fp32 masters and gradients); auto = bf16 on a GPU, fp32 on the CPU");
    field("seed", seed, "seed of initialisation and of every random choice of the model", config::kNotNegative);
    field("device", device, "auto, cpu, or cuda (one GPU for each rank; needs a CUDA build)");
    field("max_time", max_time, "save and stop with exit code 75 after this time", config::kPositive);
    field("hang_timeout", hang_timeout,
          "a step, evaluation or save longer than this ends the job with exit code 80; 0 = never",
          config::kNotNegative);
    field("profile", profile,
          "steps whose timeline is written, such as 10..12 (trace-10-12.json in the run directory); null = none");
    field("distill", distill, "a frozen model whose logits the run also learns from; null = none");
  }
};

struct EvalConfig {
  int64_t every = 100;
  int64_t batches = 16;

  void fields(auto&& field) {
    field("every", every, "steps between evaluations; 0 = only at the end", config::kNotNegative);
    field("batches", batches, "micro-batches per evaluation and source, over all ranks", config::kSize);
  }
};

struct MetricsConfig {
  int64_t every = 10;
  bool tensorboard = false;

  void fields(auto&& field) {
    field("every", every, "steps between console lines; metrics.jsonl gets every step", config::kPositive);
    field("tensorboard", tensorboard, "TensorBoard event files");
  }
};

}  // namespace conclave::train
