// SPDX-License-Identifier: Apache-2.0
// Tables of hash layers that a run makes when it begins: from which tokens and embeddings, on every rank the same.
#include <gmock/gmock.h>

#include "core/error.h"
#include "data/token_files.h"
#include "moe/hash_tables.h"
#include "support/ranks.h"
#include "train/hash_tables.h"
#include "train/initial_weights.h"
#include "train/layout_runs.h"
#include "train/saved_run.h"

namespace conclave::test {
namespace {

using moe::HashFeature;
using moe::HashTable;
using ::testing::HasSubstr;

constexpr const char* kTable = "layers.0.moe.router.hash_table buffer";
constexpr int64_t kVocab = 32;

// Documents in which id i occurs about 1/(i' + 1) as often as the most frequent one, i' a drawn order; the last never.
std::string write_zipf(const data::TemporaryDirectory& directory) {
  const Random random(3, Purpose::kTest);
  std::vector<std::vector<int32_t>> documents;
  for (int64_t n = 0; n < 40; ++n) {
    auto& document = documents.emplace_back();
    for (int64_t i = 0; i < 50; ++i) {
      const double u = random.uniform(n * 50 + i);
      document.push_back(static_cast<int32_t>((7 * static_cast<int64_t>(std::pow(kVocab - 1.0, u)) + 3) % kVocab));
    }
  }
  data::write_documents(directory / "zipf", documents, kVocab);
  return directory / "zipf";
}

LayoutCase hash_case(const moe::HashConfig& hash, const std::string& tokens) {
  return {.name = "Hash", .change = [=](train::RunConfig& config) {
            config.moe.router.type = "hash";
            config.moe.router.hash = hash;
            config.moe.balance = {};
            config.data.train = {{.name = "zipf", .path = tokens}};
            config.data.document_mask = true;
          }};
}

data::LoaderOptions options_of(const train::RunConfig& config, const parallel::Mesh& mesh) {
  data::LoaderOptions options;
  options.data = config.data;
  options.expected = {kVocab, ""};
  options.micro_batch_size = config.train.micro_batch_size;
  options.global_batch_size = config.train.global_batch_size;
  options.dp_rank = mesh.dp().rank();
  options.dp_size = mesh.dp().size();
  return options;
}

// The state of a run that has just begun.
std::map<std::string, std::string> begun(const comm::Group& world, Layout layout, const LayoutCase& layout_case) {
  RankRun run(world, layout, layout_case, parallel::Reduction::kFast);
  const data::BatchLoader batches(options_of(run.config(), run.model().mesh()));
  const auto log = make_silent_log();
  train::make_hash_tables(run.config(), batches, run.model(), *log);
  if (run.config().model.init_from) train::take_initial_weights(run.config(), world, run.state(), *log);
  return run.all_state();
}

std::vector<int64_t> table_of(const std::map<std::string, std::string>& state) {
  const std::string& bytes = state.at(kTable);
  std::vector<int64_t> table(bytes.size() / sizeof(int64_t));
  std::memcpy(table.data(), bytes.data(), bytes.size());
  return table;
}

TEST(HashTablesRun, BalancedCountsTheFirstTokensThatTrainingReads) {
  const data::TemporaryDirectory directory;
  const auto tokens = write_zipf(directory);
  for (const auto feature : {HashFeature::kCurrent, HashFeature::kPrevious}) {
    constexpr int64_t kSample = 500;  // ends within a sequence
    const auto one = hash_case({.table = HashTable::kBalanced, .feature = feature, .sample = kSample}, tokens);
    RankRun run({}, {}, one, parallel::Reduction::kFast);
    data::BatchLoader batches(options_of(run.config(), run.model().mesh()));
    std::vector<int64_t> counts(kVocab, 0);
    int64_t seen = 0;
    for (int64_t step = 0; seen < kSample; ++step)
      for (const Batch& batch : batches.take(step))
        for (int64_t t = 0; t < batch.tokens_count() && seen < kSample; ++t, ++seen) {
          const bool first = t % batch.length == 0 || batch.segment_ids[t] != batch.segment_ids[t - 1];
          ++counts[batch.tokens[feature == HashFeature::kCurrent || first ? t : t - 1]];
        }
    const auto table = table_of(begun({}, {}, one));
    EXPECT_EQ(table, moe::balanced_table(counts, {kVocab, 8, 2}));
    EXPECT_NE(table, moe::modulo_table({kVocab, 8, 2}));
  }
}

TEST(HashTablesRunRanks, AreTheSameOnAllRanksAndInEveryLayout) {
  const data::TemporaryDirectory directory;
  const auto tokens = write_zipf(directory);
  const SavedRun earlier({.name = "Earlier"}, 2);
  std::map<HashTable, std::vector<int64_t>> tables;
  for (const auto kind : {HashTable::kBalanced, HashTable::kClustered, HashTable::kDispersed}) {
    moe::HashConfig hash{.table = kind, .sample = 700};
    if (kind != HashTable::kBalanced) hash.embeddings = earlier.where();
    const auto one = hash_case(hash, tokens);
    tables[kind] = table_of(begun({}, {}, one));
    EXPECT_NE(tables[kind], moe::modulo_table({kVocab, 8, 2}));
    for (const Layout layout : {Layout{.dp = 2, .ep = 2}, Layout{.dp = 4, .ep = 2}, Layout{.tp = 2}}) {
      run_ranks(layout.ranks(), [&](const comm::Group& world) {
        EXPECT_EQ(table_of(begun(world, layout, one)), tables[kind]) << "copies are compared by all_state()";
      });
    }
  }
  EXPECT_NE(tables[HashTable::kClustered], tables[HashTable::kDispersed]);
}

// Ids whose embeddings are equal: a table by embeddings tells the groups.
TEST(HashTablesRun, EmbeddingsAreThoseOfTheNamedRun) {
  const data::TemporaryDirectory directory;
  const auto tokens = write_zipf(directory);
  LayoutCase planted{.name = "Planted", .prepare = [](model::Transformer& model) {
                       for (const auto& parameter : model.parameters().all()) {
                         if (parameter.kind != nn::ParameterKind::kEmbedding) continue;
                         Tensor rows = nn::view_of(model.parameters().flat(false), parameter);
                         for (int64_t id = 8; id < kVocab; ++id) rows[id].copy_(rows[id % 8]);
                       }
                     }};
  const SavedRun earlier(planted, 0);
  const auto table = [&](HashTable kind) {
    return table_of(begun({}, {}, hash_case({.table = kind, .embeddings = earlier.where()}, tokens)));
  };
  const auto together = table(HashTable::kClustered), apart = table(HashTable::kDispersed);
  for (int64_t id = 0; id < kVocab; ++id)
    for (int64_t other = 0; other < id; ++other) {
      EXPECT_EQ(together[2 * id] == together[2 * other], id % 8 == other % 8) << id << " " << other;
      if (id % 8 == other % 8) {
        EXPECT_NE(apart[2 * id], apart[2 * other]) << id << " " << other;
      }
    }
}

TEST(HashTablesRun, ExpertsOfAnEarlierRunKeepTheirTable) {
  const data::TemporaryDirectory directory;
  const auto tokens = write_zipf(directory);
  const auto random = hash_case({.table = HashTable::kRandom}, tokens);
  const SavedRun earlier(random, 1);
  auto next = hash_case({.table = HashTable::kBalanced}, tokens);
  const auto fresh = table_of(begun({}, {}, next));
  next.change = [change = next.change, &earlier](auto& config) {
    change(config);
    config.model.init_from = earlier.where();
  };
  EXPECT_EQ(table_of(begun({}, {}, next)), table_of(begun({}, {}, random)));
  EXPECT_NE(table_of(begun({}, {}, next)), fresh);
}

TEST(HashTablesRun, EmbeddingsThatCannotBeReadAreRefusedBeforeTraining) {
  const data::TemporaryDirectory directory;
  const auto tokens = write_zipf(directory);
  const SavedRun small({.name = "Small",
                        .change =
                            [](auto& config) {
                              config.model.vocab_size = 23;
                              config.model.tie_embeddings = true;
                            }},
                       1);
  const auto refusal = [&](const std::string& where, bool check) -> std::string {
    const auto one = hash_case({.table = HashTable::kClustered, .embeddings = where}, tokens);
    try {
      if (check) {
        train::require_embeddings(layout_config(one));
      } else {
        begun({}, {}, one);
      }
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  for (const bool check : {true, false}) {
    EXPECT_THAT(refusal(directory / "none", check), HasSubstr("neither a run directory with checkpoints nor a"));
    EXPECT_THAT(refusal(directory / "none", check), HasSubstr("moe.router.hash.embeddings: "));
    EXPECT_THAT(refusal(small.where(), check), HasSubstr("a vocabulary of 23 tokens, this run one of 32"));
  }
  EXPECT_EQ(refusal(SavedRun({.name = "Fits"}, 1).where(), true), "");
}

}  // namespace
}  // namespace conclave::test
