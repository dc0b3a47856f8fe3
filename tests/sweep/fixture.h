// SPDX-License-Identifier: Apache-2.0
// A sweep file beside a small base configuration, in a directory of its own. Nothing is trained from it: the token
// files are empty.
#pragma once

#include <gmock/gmock.h>

#include "config/config_files.h"
#include "sweep/plan.h"

namespace conclave::sweep {

class SweepFiles {
 public:
  SweepFiles() {
    for (const char* name : {"t.bin", "t.idx", "v.bin", "v.idx"}) files_.write(name, "");
    files_.write("base.yaml", kBase);
  }
  // Every test's sweep starts from the base.
  std::filesystem::path sweep(const std::string& text) const {
    return files_.write("s.yaml", "base: base.yaml\n" + text);
  }
  std::filesystem::path write(const std::string& name, const std::string& text) const {
    return files_.write(name, text);
  }
  std::filesystem::path directory() const { return files_.directory(); }
  Plan plan(const std::string& text) const { return make_plan(sweep(text)); }
  // What make_plan says, without the directory.
  std::string refusal(const std::string& text) const {
    std::string message = config_error([&] { plan(text); });
    const std::string prefix = files_.directory().string() + "/";
    for (size_t at; (at = message.find(prefix)) != std::string::npos;) message.erase(at, prefix.size());
    return message;
  }

  static constexpr const char* kBase =
      "model: {vocab_size: 512, hidden_size: 64, num_layers: 2, num_attention_heads: 4, ffn_hidden_size: 128}\n"
      "moe: {num_experts: 8, top_k: 2, expert_hidden_size: 128}\n"
      "data: {train: [{name: t, path: t}], valid: [{name: v, path: v}], seq_len: 64}\n"
      "train: {steps: 1000}\n"
      "optim: {lr: 1e-3}\n";

 private:
  ConfigFiles files_;
};

inline std::vector<std::string> cells(const std::vector<PlannedRun>& runs) {
  std::vector<std::string> result;
  for (const auto& run : runs) result.push_back(run.record.cell + " " + std::to_string(run.record.seed));
  return result;
}

}  // namespace conclave::sweep
