// SPDX-License-Identifier: Apache-2.0
#include "app/eval_command.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <optional>

#include "app/opened_run.h"
#include "app/rank_resources.h"
#include "comm/world.h"
#include "data/indexed_dataset.h"
#include "data/validation_loader.h"
#include "text/ngram.h"
#include "train/evaluator.h"
#include "train/run_report.h"
#include "train/token_activity.h"

namespace conclave::app {
namespace {

struct EvalOptions {
  std::string run;
  bool yardsticks = false, experts = false, frequency = false;
  int64_t batches = 0;
  std::string json;
};

struct Yardstick {
  double unigram = 0, bigram = 0;
};

// Tokens whose targets count, one after the other, with the token before the first; a masked target (the first of
// another document, padding) ends a run.
std::vector<std::vector<int32_t>> counted_runs(const Batch& batch) {
  std::vector<std::vector<int32_t>> runs;
  for (int64_t t = 0; t < batch.tokens_count(); ++t) {
    if (batch.loss_mask[t] == 0) continue;
    if (t % batch.length == 0 || batch.loss_mask[t - 1] == 0) runs.push_back({batch.tokens[t]});
    runs.back().push_back(batch.targets[t]);
  }
  return runs;
}

// Unigram and interpolated Kneser-Ney bigram fitted on the training source of the same name, scored on the very targets
// the model is.
std::optional<Yardstick> yardstick(const train::RunConfig& config, const data::ValidationLoader& loader,
                                   size_t source) {
  const auto& name = config.data.valid[source].name;
  const auto train =
      std::find_if(config.data.train.begin(), config.data.train.end(), [&](const auto& s) { return s.name == name; });
  if (train == config.data.train.end()) return std::nullopt;
  const data::IndexedReader reader(train->path);
  text::UnigramModel unigram(static_cast<int32_t>(config.model.vocab_size));
  text::BigramModel bigram(static_cast<int32_t>(config.model.vocab_size));
  std::vector<int32_t> all(reader.tokens());
  reader.read_tokens(0, all);
  unigram.add(all);
  bigram.add(all);
  text::NgramScore one, two;
  for (int64_t i = 0; i < loader.batches(source); ++i) {
    const Batch batch = loader.batch(source, i);
    for (const auto& sequence : counted_runs(batch)) {
      one += unigram.score(sequence);
      two += bigram.score(sequence);
    }
  }
  return Yardstick{one.nats_per_token(), two.nats_per_token()};
}

void print_table(const std::vector<train::Evaluation>& results,
                 const std::vector<std::optional<Yardstick>>& yardsticks) {
  fmt::print("  {:<16} {:>8} {:>11} {:>9} {:>9} {:>9}\n", "validation", "loss", "perplexity", "tokens", "unigram",
             "bigram");
  for (size_t i = 0; i < results.size(); ++i) {
    const auto& r = results[i];
    const auto number = [&](double Yardstick::*member) {
      return i < yardsticks.size() && yardsticks[i] ? fmt::format("{:.4f}", (*yardsticks[i]).*member)
                                                    : std::string("-");
    };
    fmt::print("  {:<16} {:>8.4f} {:>11.2f} {:>9} {:>9} {:>9}\n", r.source, r.loss, std::exp(r.loss), r.targets,
               number(&Yardstick::unigram), number(&Yardstick::bigram));
  }
}

// How many experts frequent and rare tokens take.
void print_activity(const train::TokenActivity& activity) {
  fmt::print("\n  experts that compute for a token, by how often it occurs here\n  {:>16} {:>7} {:>9} {:>8}\n",
             "occurs", "words", "tokens", "experts");
  for (const auto& band : activity.bands())
    fmt::print("  {:>16} {:>7} {:>9} {:>8.3f}\n", fmt::format("{} to {}", band.from, band.to - 1), band.words,
               band.tokens, band.experts);
  fmt::print("  rank correlation of a word's occurrences and its experts: {:+.3f}\n", activity.rank_correlation());
}

void write_json(const std::string& path, int64_t step, const std::vector<train::Evaluation>& results,
                const std::vector<std::optional<Yardstick>>& yardsticks) {
  auto list = checkpoint::Json::array();
  for (size_t i = 0; i < results.size(); ++i) {
    checkpoint::Json entry{{"source", results[i].source}, {"loss", results[i].loss}, {"tokens", results[i].targets}};
    if (i < yardsticks.size() && yardsticks[i])
      entry["unigram"] = yardsticks[i]->unigram, entry["bigram"] = yardsticks[i]->bigram;
    list.push_back(entry);
  }
  std::ofstream out(path);
  out << checkpoint::Json{{"step", step}, {"evaluation", list}}.dump(2) << "\n";
  out.flush();
  if (!out) throw IoError("cannot write {}: check the directory and the space left", path);
}

int evaluate_in(comm::World& world, const EvalOptions& options) {
  at::set_num_threads(rank_threads(world.cores()));
  const auto log = make_log(world.rank());
  auto opened = open_run(options.run, world.group(), *log);
  auto& config = opened.config;
  if (config.data.valid.empty()) throw ConfigError("{} has no validation sources (data.valid)", options.run);
  const data::LoaderOptions loading{.data = config.data,
                                    .expected = {config.model.vocab_size, ""},
                                    .micro_batch_size = config.train.micro_batch_size,
                                    .global_batch_size = config.train.global_batch_size,
                                    .dp_rank = opened.mesh.dp().rank(),
                                    .dp_size = opened.mesh.dp().size()};
  const int64_t batches = options.batches > 0 ? options.batches : config.eval.batches;
  const data::ValidationLoader loader(loading, batches);
  train::TokenActivity activity(config.model.vocab_size);
  const auto see = [&](const Batch& batch, nn::Frame& frame) {
    std::vector<const moe::Decision*> layers;
    opened.model->loss_view(frame, layers);
    activity.add(batch, layers);
  };
  const bool counts = options.frequency && !opened.model->moe_layers().empty();
  const auto results =
      train::evaluate(*opened.model, loader, opened.mesh, opened.step, counts ? see : train::SeeBatch());
  activity.reduce(opened.mesh.dp());
  if (world.rank() != 0) return 0;
  std::vector<std::optional<Yardstick>> yardsticks;
  if (options.yardsticks) {
    const int64_t size = config.train.micro_batch_size;
    const data::ValidationLoader all({config.data, loading.expected, size, size, 0, 1}, batches);
    for (size_t s = 0; s < results.size(); ++s) yardsticks.push_back(yardstick(config, all, s));
  }
  fmt::print("{} at step {}\n", options.run, opened.step);
  print_table(results, yardsticks);
  if (options.experts && !opened.model->moe_layers().empty()) {
    fmt::print("\n  busiest experts and their share of the tokens\n{}",
               train::expert_table(results, opened.model->moe_layers()));
  }
  if (counts) print_activity(activity);
  if (!options.json.empty()) write_json(options.json, opened.step, results, yardsticks);
  return 0;
}

}  // namespace

void add_eval_command(CLI::App& app, std::function<int()>& run) {
  const auto options = std::make_shared<EvalOptions>();
  auto* command = app.add_subcommand("eval", "validation loss of a run, per source");
  command->add_option("RUN", options->run, "directory of the run")->required();
  command->add_flag("--yardsticks", options->yardsticks,
                    "also what unigram and bigram counts of the training tokens reach");
  command->add_flag("--experts", options->experts, "also which experts each source uses");
  command->add_flag("--frequency", options->frequency, "also how many experts frequent and rare tokens take");
  command->add_option("--batches", options->batches,
                      "micro-batches of each source (default: eval.batches, as in training)");
  command->add_option("--json", options->json, "write the figures to this file as well");
  command->footer("Example:\n  conclave eval runs/quickstart --yardsticks --experts");
  command->callback([options, &run] {
    run = [options] { return comm::run_world([&](comm::World& world) { return evaluate_in(world, *options); }); };
  });
}

}  // namespace conclave::app
