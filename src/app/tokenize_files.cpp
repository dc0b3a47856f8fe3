// SPDX-License-Identifier: Apache-2.0
#include "app/tokenize_files.h"

#include <xxhash.h>

#include <cmath>
#include <deque>
#include <filesystem>
#include <future>

#include "core/error.h"
#include "data/indexed_writer.h"

namespace conclave::app {
namespace {

// Work given to a thread at a time: long against starting it, short against the memory of all batches under way.
constexpr size_t kBatchBytes = size_t{4} << 20;

struct Batch {
  std::vector<text::RawDocument> documents;
};

struct Encoded {
  struct Document {
    size_t tokens;
    int64_t bytes;
    bool valid;
  };
  std::vector<int32_t> ids;  // of all documents, end to end
  std::vector<Document> documents;
  int64_t empty = 0;
  std::unique_ptr<text::WordCache> cache;  // handed on to the next batch, warm
};

Batch next_batch(text::TextReader& reader) {
  Batch batch;
  text::RawDocument document;
  for (size_t bytes = 0; bytes < kBatchBytes && reader.next(document);) {
    bytes += document.content.size();
    batch.documents.push_back(std::move(document));
  }
  return batch;
}

// One output file pair; opened with the first document.
class Part {
 public:
  Part(std::string prefix, const text::Tokenizer& tokenizer)
      : result_{std::move(prefix)}, writer_(result_.prefix, tokenizer.vocab_size()) {}

  void add(std::span<const int32_t> ids, int64_t bytes) {
    writer_.add_document(ids);
    ++result_.documents;
    result_.bytes += bytes;
    result_.tokens += static_cast<int64_t>(ids.size());
  }
  TokenizedPart finish(const data::WriterMetadata& metadata) {
    writer_.finish(metadata);
    return result_;
  }
  int64_t documents() const { return result_.documents; }

 private:
  TokenizedPart result_;
  data::IndexedWriter writer_;
};

class Pipeline {
 public:
  Pipeline(text::TextReader& reader, const text::Tokenizer& tokenizer, const TokenizeJob& job)
      : reader_(reader), tokenizer_(tokenizer), job_(job), train_(job.output, tokenizer) {
    if (job.valid_share > 0) valid_.emplace(job.output + "-valid", tokenizer);
  }

  TokenizeResult run(const std::function<void(int64_t)>& progress) {
    std::deque<std::future<Encoded>> under_way;
    const auto most = static_cast<size_t>(job_.workers);
    while (true) {
      // Reading the next batch overlaps with the threads' work on the earlier ones.
      Batch batch = next_batch(reader_);
      const bool done = batch.documents.empty();
      while (!under_way.empty() && (done || under_way.size() >= most)) {
        write(under_way.front().get());
        under_way.pop_front();
      }
      if (done) break;
      progress(reader_.bytes_read());
      under_way.push_back(
          std::async(std::launch::async, [this, batch = std::move(batch), cache = take_cache()]() mutable {
            return encode(std::move(batch), std::move(cache));
          }));
    }
    return finish();
  }

 private:
  text::TextReader& reader_;
  const text::Tokenizer& tokenizer_;
  const TokenizeJob& job_;
  Part train_;
  std::optional<Part> valid_;
  int64_t empty_ = 0;
  std::vector<std::unique_ptr<text::WordCache>> idle_caches_;

  std::unique_ptr<text::WordCache> take_cache() {
    if (idle_caches_.empty()) return std::make_unique<text::WordCache>();
    auto cache = std::move(idle_caches_.back());
    idle_caches_.pop_back();
    return cache;
  }

  // On a thread of its own: touches nothing that changes.
  Encoded encode(Batch batch, std::unique_ptr<text::WordCache> cache) const {
    Encoded out;
    for (text::RawDocument& raw : batch.documents) {
      const std::string text = text::document_text(std::move(raw), reader_.options().json_key);
      if (text.empty()) {
        ++out.empty;
        continue;
      }
      const size_t before = out.ids.size();
      tokenizer_.encode(text, out.ids, *cache);
      if (job_.end_of_document) out.ids.push_back(*job_.end_of_document);
      out.documents.push_back(
          {out.ids.size() - before, static_cast<int64_t>(text.size()), is_validation(text, job_.valid_share)});
    }
    out.cache = std::move(cache);
    return out;
  }

  void write(Encoded encoded) {
    std::span<const int32_t> rest(encoded.ids);
    for (const Encoded::Document& document : encoded.documents) {
      (document.valid ? *valid_ : train_).add(rest.first(document.tokens), document.bytes);
      rest = rest.subspan(document.tokens);
    }
    empty_ += encoded.empty;
    idle_caches_.push_back(std::move(encoded.cache));
  }

  TokenizeResult finish() {
    if (train_.documents() == 0) throw DataError("the input holds no text to train on: nothing was written");
    if (valid_ && valid_->documents() == 0) {
      throw DataError(
          "none of {} documents fell into the validation part of {}: use a greater --valid-share or files of "
          "your own for validation",
          train_.documents(), job_.valid_share);
    }
    const data::WriterMetadata metadata{tokenizer_.hash(), job_.end_of_document};
    TokenizeResult result;
    result.empty_documents = empty_;
    result.train = train_.finish(metadata);
    if (valid_) result.valid = valid_->finish(metadata);
    return result;
  }
};

}  // namespace

bool is_validation(std::string_view text, double valid_share) {
  const double place = std::ldexp(static_cast<double>(XXH3_64bits(text.data(), text.size()) >> 11), -53);
  return place < valid_share;
}

TokenizeResult tokenize_files(text::TextReader& reader, const text::Tokenizer& tokenizer, const TokenizeJob& job,
                              const std::function<void(int64_t)>& progress) {
  const auto directory = std::filesystem::path(job.output).parent_path();
  if (!directory.empty() && !std::filesystem::is_directory(directory)) {
    throw UsageError("the directory of {} does not exist: create {} first", job.output, directory.string());
  }
  return Pipeline(reader, tokenizer, job).run(progress);
}

}  // namespace conclave::app
