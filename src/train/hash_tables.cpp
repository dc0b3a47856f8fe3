// SPDX-License-Identifier: Apache-2.0
#include "train/hash_tables.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>

#include "checkpoint/agreement.h"
#include "moe/hash_tables.h"
#include "train/initial_weights.h"
#include "train/run_state.h"
#include "train/teacher.h"

namespace conclave::train {
namespace {

using moe::HashTable;
using moe::TableShape;

constexpr const char* kEmbedding = "embedding.weight";
constexpr const char* kRemedy = "Name a run of `conclave train`, or one of its checkpoints.";

struct Embeddings {
  std::vector<float> values_VD;  // on rank 0
  int64_t dimensions = 0;
};

moe::HashConfig hash_of(const RunConfig& config) { return config.moe.router.hash.value_or(moe::HashConfig()); }

bool compares_embeddings(const RunConfig& config) {
  const HashTable table = hash_of(config).table;
  return config.moe.enabled && config.moe.router.type == "hash" &&
         (table == HashTable::kClustered || table == HashTable::kDispersed);
}

// How often each id decides about a token, among the first tokens in the order in which training reads them.
std::vector<int64_t> counts_of(const RunConfig& config, const data::BatchLoader& batches) {
  const moe::HashConfig hash = hash_of(config);
  std::vector<int64_t> counts(config.model.vocab_size, 0);
  int64_t left = hash.sample;
  for (int64_t sample = 0; left > 0; ++sample) {
    const Batch batch = batches.samples(sample, 1);
    const int64_t tokens = std::min(left, batch.tokens_count());
    for (int64_t t = 0; t < tokens; ++t)
      if (batch.segment_ids[t] >= 0) ++counts[moe::hashed_id(batch, t, hash.feature)];
    left -= tokens;
  }
  return counts;
}

// Throws ConfigError unless the embeddings of `manifest` are of this run's tokens.
int64_t require_fit(const RunConfig& config, const checkpoint::Manifest& manifest, const std::string& where) {
  const auto* tensor = checkpoint::find_tensor(manifest, kEmbedding, kParamRole);
  if (tensor == nullptr || tensor->shape.size() != 2)
    throw ConfigError("moe.router.hash.embeddings: {} holds no embeddings\n  {}", where, kRemedy);
  if (tensor->shape[0] != config.model.vocab_size)
    throw ConfigError(
        "moe.router.hash.embeddings: {} has a vocabulary of {} tokens, this run one of {}\n  The table is made id by "
        "id: name a run with this run's tokenizer.",
        where, tensor->shape[0], config.model.vocab_size);
  const std::string own = tokenizer_hash(config), its = manifest.extra.value("tokenizer", std::string());
  if (!own.empty() && !its.empty() && own != its)
    throw ConfigError(
        "moe.router.hash.embeddings: {} was trained with another tokenizer (hash {}, of this run's data.tokenizer {}), "
        "so its ids are other tokens\n  Name a run with this run's tokenizer.",
        where, its, own);
  return tensor->shape[1];
}

checkpoint::Resumed open(const RunConfig& config, const comm::Group& world, Log& log) {
  try {
    return open_earlier_run(*hash_of(config).embeddings, world, log);
  } catch (const Error& error) {
    checkpoint::throw_error(static_cast<int>(error.code()),
                            fmt::format("moe.router.hash.embeddings: {}\n  {}", error.what(), kRemedy));
  }
}

Embeddings read_embeddings(const RunConfig& config, const comm::Group& world, Log& log) {
  const checkpoint::Resumed found = open(config, world, log);
  Embeddings result;
  checkpoint::agree(world, [&] { result.dimensions = require_fit(config, found.manifest, found.folder.string()); });
  const std::vector<int64_t> shape{config.model.vocab_size, result.dimensions};
  parallel::StateDict boxes;
  if (world.rank() == 0) {
    result.values_VD.resize(shape[0] * shape[1]);
    boxes.push_back({.name = kEmbedding,
                     .role = kParamRole,
                     .dtype = comm::DType::kFloat32,
                     .global_shape = shape,
                     .offset = {0, 0},
                     .shape = shape,
                     .data = std::as_writable_bytes(std::span(result.values_VD))});
  }
  checkpoint::read_boxes(world, found.folder, found.manifest, boxes);
  return result;
}

std::vector<int64_t> table_of_clusters(const RunConfig& config, const Embeddings& embeddings, const TableShape& shape) {
  const Random random(static_cast<uint64_t>(config.train.seed), conclave::Purpose::kHashTable, "k-means");
  const auto clusters = moe::k_means(embeddings.values_VD, embeddings.dimensions, shape.experts, random);
  return hash_of(config).table == HashTable::kClustered ? moe::clustered_table(clusters, shape)
                                                        : moe::dispersed_table(clusters, shape);
}

// Of each number of experts, made on rank 0.
class Tables {
 public:
  Tables(const comm::Group& world, std::function<std::vector<int64_t>(const TableShape&)> make)
      : world_(world), make_(std::move(make)) {}
  const std::vector<int64_t>& of(const TableShape& shape) {
    const auto [at, fresh] = made_.try_emplace(shape.experts, shape.vocab * shape.top_k);
    if (!fresh) return at->second;
    checkpoint::agree(world_, [&] {
      if (world_.rank() == 0) at->second = make_(shape);
    });
    world_.broadcast(std::span<int64_t>(at->second), 0);
    return at->second;
  }

 private:
  const comm::Group& world_;
  std::function<std::vector<int64_t>(const TableShape&)> make_;
  std::map<int64_t, std::vector<int64_t>> made_;
};

void write_tables(model::Transformer& model, Tables& tables) {
  for (size_t l = 0; l < model.state().layers.size(); ++l) {
    const auto& layer = model.shape().layers[model.moe_layers()[l]];
    const auto& table = tables.of({model.shape().vocab, layer.num_experts, layer.top_k});
    std::copy(table.begin(), table.end(), model.state().layers[l].values<int64_t>("hash_table").begin());
  }
}

void report_counts(const std::vector<int64_t>& counts, int64_t sample, Log& log) {
  log.info("hash tables: {} of {} ids occur in the first {} tokens, one {} times; the others are dealt out in turn",
           std::count_if(counts.begin(), counts.end(), [](int64_t count) { return count > 0; }), counts.size(), sample,
           *std::max_element(counts.begin(), counts.end()));
}

}  // namespace

void make_hash_tables(const RunConfig& config, const data::BatchLoader& batches, model::Transformer& model, Log& log) {
  const comm::Group& world = model.mesh().world();
  if (!config.moe.enabled || config.moe.router.type != "hash" || model.state().layers.empty()) return;
  if (hash_of(config).table == HashTable::kBalanced) {
    std::vector<int64_t> counts;
    checkpoint::agree(world, [&] {
      if (world.rank() != 0) return;
      counts = counts_of(config, batches);
      report_counts(counts, hash_of(config).sample, log);
    });
    Tables tables(world, [&](const TableShape& shape) { return moe::balanced_table(counts, shape); });
    write_tables(model, tables);
  }
  if (!compares_embeddings(config)) return;
  const Embeddings embeddings = read_embeddings(config, world, log);
  Tables tables(world, [&](const TableShape& shape) { return table_of_clusters(config, embeddings, shape); });
  write_tables(model, tables);
}

void require_embeddings(const RunConfig& config) {
  if (!compares_embeddings(config)) return;
  const std::filesystem::path where(*hash_of(config).embeddings);
  std::filesystem::path folder = where;
  if (const auto steps = checkpoint::list_steps(where / "checkpoints"); !steps.empty())
    folder = where / "checkpoints" / checkpoint::step_name(steps[0]);
  if (!std::filesystem::exists(folder / "MANIFEST.json"))
    throw ConfigError(
        "moe.router.hash.embeddings: {} is neither a run directory with checkpoints nor a checkpoint\n  {}",
        where.string(), kRemedy);
  const auto manifest =
      checkpoint::parse_manifest(checkpoint::read_manifest_text(folder), (folder / "MANIFEST.json").string());
  require_fit(config, manifest, folder.string());
}

}  // namespace conclave::train
