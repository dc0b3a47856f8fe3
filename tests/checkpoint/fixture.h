// SPDX-License-Identifier: Apache-2.0
// What the checkpoint tests share: a scratch folder, a small training state in any layout, ranks as threads, and ways
// to damage files. Asserts nothing by itself.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <list>
#include <mutex>
#include <sstream>
#include <thread>

#include "checkpoint/file.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/store.h"
#include "core/error.h"
#include "core/random.h"
#include "support/ranks.h"

namespace conclave::checkpoint {

class Scratch {
 public:
  Scratch() {
    auto name = (std::filesystem::temp_directory_path() / "checkpoint-XXXXXX").string();
    where_ = ::mkdtemp(name.data());
  }
  ~Scratch() { remove_tree(where_); }
  const path& where() const { return where_; }
  path run() const { return where_ / "run"; }
  path step(int64_t step) const { return run() / "checkpoints" / step_name(step); }

 private:
  path where_;
};

// How a state is spread: experts over blocks of `ep` ranks, everything else on every rank; `split` cuts one tensor over
// all ranks.
struct Layout {
  int ep = 1;
  bool split = false;
};

// A small training state whose values depend on (seed, name, global element) alone.
class TestState {
 public:
  static constexpr int kExperts = 4;

  TestState(const comm::Group& group, Layout layout, uint64_t seed) : seed_(seed) {
    const int rank = group.rank();
    for (const char* role : {"param", "adam_m", "adam_v"}) {
      add({"embed.weight", role, comm::DType::kFloat32, {37, 8}, {0, 0}, {37, 8}, {}, rank == 0});
      for (int expert = 0; expert < kExperts; ++expert) {
        const int per_rank = kExperts / layout.ep;
        if (expert / per_rank != rank % layout.ep) continue;
        add({"layers.0.moe.experts." + std::to_string(expert) + ".gate.weight",
             role,
             comm::DType::kFloat32,
             {6, 5},
             {0, 0},
             {6, 5},
             {},
             rank < layout.ep});
      }
    }
    const bool last = rank == group.size() - 1;
    add({"router.bias", "buffer", comm::DType::kFloat64, {kExperts}, {0}, {kExperts}, {}, last});
    add({"counts", "buffer", comm::DType::kInt64, {}, {}, {}, {}, last});
    const int64_t part = 24 / group.size();
    if (layout.split)
      add({"flat", "master", comm::DType::kFloat32, {2, 24}, {0, part * rank}, {2, part}, {}, true});
    else
      add({"flat", "master", comm::DType::kFloat32, {2, 24}, {0, 0}, {2, 24}, {}, rank == 0});
  }

  const parallel::StateDict& dict() const { return dict_; }
  parallel::StateDict& dict() { return dict_; }
  void clear() {
    for (auto& bytes : buffers_) std::fill(bytes.begin(), bytes.end(), std::byte{0xA5});
  }
  bool same_as(const TestState& other) const { return buffers_ == other.buffers_; }
  std::vector<std::byte>& bytes(const std::string& name, const std::string& role) {
    auto buffer = buffers_.begin();
    for (const auto& entry : dict_) {
      if (entry.name == name && entry.role == role) return *buffer;
      ++buffer;
    }
    throw BugError("no {} in the test state", name);
  }

 private:
  void add(parallel::StateEntry entry) {
    const Random random(seed_, Purpose::kTest, entry.name + entry.role);
    const int64_t item = entry.dtype == comm::DType::kFloat32 ? 4 : 8;
    auto& bytes = buffers_.emplace_back(static_cast<size_t>(*volume(entry.shape) * item));
    for (int64_t i = 0; i < *volume(entry.shape); ++i) {
      // Element i of the box is global element: all boxes here are whole, or columns of a matrix.
      int64_t global = i;
      if (entry.shape.size() == 2)
        global = (i / entry.shape[1]) * entry.global_shape[1] + entry.offset[1] + i % entry.shape[1];
      const auto single = static_cast<float>(random.normal(static_cast<uint64_t>(global)));
      const double wide = random.normal(static_cast<uint64_t>(global));
      if (item == 4) std::memcpy(bytes.data() + i * 4, &single, 4);
      if (item == 8) std::memcpy(bytes.data() + i * 8, &wide, 8);
    }
    entry.data = bytes;
    dict_.push_back(std::move(entry));
  }

  uint64_t seed_;
  std::list<std::vector<std::byte>> buffers_;
  parallel::StateDict dict_;
};

inline StoreOptions quick_options() {
  StoreOptions options;
  options.keep_last = 2;
  options.directory.lock = {0.05, 0.5};
  return options;
}

inline SaveContents contents_at(int64_t step) {
  SaveContents contents;
  contents.step = step;
  contents.tokens = step * 1000;
  contents.samples = step * 8;
  contents.config.model = {{"hidden_size", 64}, {"moe", {{"num_experts", 4}}}};
  contents.config.training = {{"lr", 0.001}};
  contents.extra = {{"window", {1.5, 2.5}}};
  return contents;
}

inline ResumeRequest request(const std::string& mode = "auto") {
  ResumeRequest request;
  request.mode = mode;
  request.config = contents_at(0).config;
  return request;
}

// A store of one rank with state and everything it needs.
struct SingleRun {
  explicit SingleRun(const path& where, const std::string& failpoints = "", StoreOptions options = quick_options())
      : points(failpoints, 0), store(comm::Group(), where, options, points, *log) {}
  Saved save(int64_t step) {
    const TestState state(comm::Group(), {}, static_cast<uint64_t>(step));
    return store.save(contents_at(step), state.dict());
  }
  // Whether `step` is what a resume finds, byte for byte.
  testing::AssertionResult resumes_at(int64_t step, const ResumeRequest& how = request()) {
    TestState state(comm::Group(), {}, 999);
    state.clear();
    const auto manifest = store.resume(how, state.dict());
    if (!manifest) return testing::AssertionFailure() << "fresh start";
    if (manifest->step != step) return testing::AssertionFailure() << "resumed at " << manifest->step;
    if (!state.same_as(TestState(comm::Group(), {}, static_cast<uint64_t>(step))))
      return testing::AssertionFailure() << "bytes differ";
    return testing::AssertionSuccess();
  }
  std::shared_ptr<Log> log = make_silent_log();
  Failpoints points;
  Store store;
};

inline std::string slurp(const path& where) {
  std::ifstream stream(where, std::ios::binary);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str();
}

inline void spill(const path& where, const std::string& bytes) {
  std::filesystem::remove_all(where);
  std::ofstream(where, std::ios::binary) << bytes;
}

// Names of `folder`'s entries that begin with `prefix`.
inline std::vector<std::string> entries(const path& folder, const std::string& prefix = "") {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().filename().string().rfind(prefix, 0) == 0) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// The message of the error `work` throws; empty if none.
inline std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

inline const std::vector<std::string>& save_failpoints() {
  static const std::vector<std::string> names = {
      "staging-mkdir",     "file-open",        "header",          "mid-chunk",    "before-file-fsync",
      "after-file-fsync",  "gather",           "before-manifest", "mid-manifest", "after-manifest",
      "before-dir-rename", "after-dir-rename", "mid-latest",      "mid-retention"};
  return names;
}
// The rename that commits comes before these.
inline bool committed_at(const std::string& failpoint) {
  return failpoint == "after-dir-rename" || failpoint == "mid-latest" || failpoint == "mid-retention";
}

}  // namespace conclave::checkpoint
