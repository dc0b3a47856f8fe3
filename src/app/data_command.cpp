// SPDX-License-Identifier: Apache-2.0
#include "app/data_command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <thread>

#include "app/data_progress.h"
#include "app/tokenize_files.h"
#include "core/error.h"
#include "data/indexed_dataset.h"

namespace conclave::app {
namespace {

constexpr int kMostWorkers = 1024;

int default_workers() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

struct TextInput {
  std::vector<std::string> inputs;
  std::string json_key = "text";
  int workers = default_workers();

  void add_options(CLI::App& command) {
    command
        .add_option("INPUT", inputs,
                    "files (.txt = one document, .jsonl = one a line; also .gz, .zst), directories, globs")
        ->required();
    command.add_option("--json-key", json_key, "where the text is in a line of JSON; a.b looks inside a")
        ->capture_default_str();
    command.add_option("--workers", workers, "threads; the result is the same for any number")
        ->check(CLI::Range(1, kMostWorkers))
        ->capture_default_str();
  }
  text::TextReader open() const { return text::TextReader(inputs, {json_key}); }
};

struct TokenizeOptions {
  TextInput text;
  std::string tokenizer;
  std::string output;
  bool append_eod = true;
  double valid_share = 0;
};

struct TrainOptions {
  TextInput text;
  int vocab_size = 2048;
  std::string output;
};

double megabytes(int64_t bytes) { return static_cast<double>(bytes) / 1e6; }

void print_row(const TokenizedPart& part, double seconds) {
  fmt::print("{:<32} {:>11} {:>10.2f} {:>13} {:>11.3f} {:>8.1f}\n", part.prefix, part.documents, megabytes(part.bytes),
             part.tokens, static_cast<double>(part.bytes) / static_cast<double>(part.tokens),
             megabytes(part.bytes) / seconds);
}

// The token files' description is PREFIX.json: it must not replace the tokenizer.
void keep_tokenizer(const TokenizeOptions& options) {
  std::error_code code;
  if (!std::filesystem::equivalent(options.tokenizer, options.output + ".json", code) || code) return;
  throw UsageError("--output {} would write {}.json over the tokenizer\n  Give another prefix, for example {}-tokens.",
                   options.output, options.output, options.output);
}

int tokenize(const TokenizeOptions& options) {
  keep_tokenizer(options);
  const text::Tokenizer tokenizer = text::Tokenizer::load(options.tokenizer);
  TokenizeJob job{options.output, std::nullopt, options.valid_share, options.text.workers};
  if (options.append_eod) {
    job.end_of_document = tokenizer.end_of_document();
    if (!job.end_of_document) {
      throw UsageError(
          "{} has no end-of-document token that we know (<|endoftext|>, </s>, ...): add one to it, or pass "
          "--no-append-eod",
          options.tokenizer);
    }
  }
  text::TextReader reader = options.text.open();
  DataProgress progress("tokenize", reader.total_bytes());
  const TokenizeResult result = tokenize_files(reader, tokenizer, job, [&](int64_t bytes) { progress.update(bytes); });
  const double seconds = std::max(progress.seconds(), 1e-6);
  fmt::print("{:<32} {:>11} {:>10} {:>13} {:>11} {:>8}\n", "token files", "documents", "MB", "tokens", "bytes/token",
             "MB/s");
  print_row(result.train, seconds);
  if (result.valid) print_row(*result.valid, seconds);
  if (result.empty_documents > 0) fmt::print("{} empty documents left out\n", result.empty_documents);
  fmt::print("tokenizer {} ({} tokens, hash {})\n", options.tokenizer, tokenizer.vocab_size(), tokenizer.hash());
  return 0;
}

int train_tokenizer(const TrainOptions& options) {
  text::TextReader reader = options.text.open();
  DataProgress progress("train-tokenizer", reader.total_bytes());
  int64_t documents = 0;
  int64_t bytes = 0;
  const auto next = [&](std::string& text) {
    if (!reader.next_text(text)) return false;
    ++documents;
    bytes += static_cast<int64_t>(text.size());
    progress.update(reader.bytes_read());
    return true;
  };
  text::TokenizerTraining training;
  training.vocab_size = options.vocab_size;
  training.threads = options.text.workers;
  const text::Tokenizer tokenizer = text::Tokenizer::train(next, training);
  if (bytes == 0) throw DataError("the input holds no text: no tokenizer was written");
  tokenizer.save(options.output);
  fmt::print("{}: {} tokens from {} documents ({:.2f} MB) in {:.1f} s\n", options.output, tokenizer.vocab_size(),
             documents, megabytes(bytes), progress.seconds());
  if (tokenizer.vocab_size() < options.vocab_size) {
    fmt::print("fewer than the {} asked for: no further pair of tokens occurs twice in this text\n",
               options.vocab_size);
  }
  fmt::print("hash {}\n", tokenizer.hash());
  return 0;
}

int inspect(const std::string& prefix) {
  data::IndexedReader reader(prefix);
  fmt::print("{:<16} {}\n{:<16} {}\n{:<16} {}\n", "prefix", prefix, "documents", reader.documents(), "tokens",
             reader.tokens());
  fmt::print("{:<16} {}\n", "bytes per id", data::token_bytes(reader.type()));
  if (reader.documents() > 0) {
    fmt::print("{:<16} {:.1f}\n", "mean length",
               static_cast<double>(reader.tokens()) / static_cast<double>(reader.documents()));
  }
  if (const auto& info = reader.info()) {
    fmt::print("{:<16} {}\n", "vocabulary", info->vocab_size);
    fmt::print("{:<16} {}\n", "end of document",
               info->end_of_document ? std::to_string(*info->end_of_document) : "none");
    fmt::print("{:<16} {}\n", "tokenizer hash", info->tokenizer_hash.empty() ? "unknown" : info->tokenizer_hash);
    reader.check_tokens(info->vocab_size);
    fmt::print("every token is below {}\n", info->vocab_size);
  } else {
    fmt::print("no {}.json beside it: which tokenizer made it is unknown\n", prefix);
  }
  return 0;
}

void add_tokenize(CLI::App& data, std::function<int()>& run) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* command = data.add_subcommand("tokenize", "turn text into token files (Megatron .bin/.idx)");
  options->text.add_options(*command);
  command->add_option("--tokenizer", options->tokenizer, "a tokenizer.json, or `bytes`")->required();
  command->add_option("--output", options->output, "prefix of the token files")->required();
  command->add_flag("--append-eod,!--no-append-eod", options->append_eod,
                    "close each document with the end-of-document token (default: on)");
  command
      ->add_option("--valid-share", options->valid_share,
                   "also write PREFIX-valid with this share of the documents, chosen by a hash of their text")
      ->check(CLI::Range(0.0, 0.99))
      ->capture_default_str();
  command->footer(
      "Example:\n  conclave data tokenize corpus/ --tokenizer tokenizer.json --output data/books --valid-share 0.05");
  command->callback([options, &run] { run = [options] { return tokenize(*options); }; });
}

void add_train(CLI::App& data, std::function<int()>& run) {
  auto options = std::make_shared<TrainOptions>();
  CLI::App* command = data.add_subcommand("train-tokenizer", "learn a byte-level BPE from text");
  options->text.add_options(*command);
  command->add_option("--vocab-size", options->vocab_size, "tokens in all: 256 bytes, the merges, <|endoftext|> last")
      ->check(CLI::Range(257, 1 << 20))
      ->capture_default_str();
  command->add_option("--output", options->output, "the tokenizer.json to write")->required();
  command->footer(
      "Example:\n  conclave data train-tokenizer 'corpus/*.jsonl.zst' --vocab-size 2048 --output tokenizer.json");
  command->callback([options, &run] { run = [options] { return train_tokenizer(*options); }; });
}

void add_inspect(CLI::App& data, std::function<int()>& run) {
  auto prefix = std::make_shared<std::string>();
  CLI::App* command = data.add_subcommand("inspect", "say what token files hold and check them whole");
  command->add_option("PREFIX", *prefix, "token files without .bin/.idx")->required();
  command->footer("Example:\n  conclave data inspect data/books");
  command->callback([prefix, &run] { run = [prefix] { return inspect(*prefix); }; });
}

}  // namespace

void add_data_command(CLI::App& app, std::function<int()>& run) {
  CLI::App* data = app.add_subcommand("data", "prepare text for training");
  data->require_subcommand(1);
  data->footer(
      "Example:\n  conclave data train-tokenizer corpus/ --vocab-size 2048 --output tokenizer.json\n"
      "  conclave data tokenize corpus/ --tokenizer tokenizer.json --output data/corpus --valid-share 0.05");
  add_tokenize(*data, run);
  add_train(*data, run);
  add_inspect(*data, run);
}

}  // namespace conclave::app
