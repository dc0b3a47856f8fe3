// SPDX-License-Identifier: Apache-2.0
#include "train/metrics.h"

#include <fmt/chrono.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "checkpoint/file.h"
#include "core/error.h"

namespace conclave::train {

using Json = nlohmann::ordered_json;

LayerHealth health(const moe::StepTotals& t) {
  LayerHealth h;
  const int64_t dispatched = std::accumulate(t.dispatched_E.begin(), t.dispatched_E.end(), int64_t{0});
  const int64_t busiest = t.dispatched_E.empty() ? 0 : *std::max_element(t.dispatched_E.begin(), t.dispatched_E.end());
  h.dead = std::count(t.dispatched_E.begin(), t.dispatched_E.end(), 0);
  h.entropy = t.tokens > 0 ? t.entropy / static_cast<double>(t.tokens) : 0;
  h.max_over_mean =
      dispatched > 0 ? static_cast<double>(busiest * t.dispatched_E.size()) / static_cast<double>(dispatched) : 0;
  h.dropped =
      dispatched + t.dropped > 0 ? static_cast<double>(t.dropped) / static_cast<double>(dispatched + t.dropped) : 0;
  if (t.sent) h.sent = dispatched > 0 ? static_cast<double>(*t.sent) / static_cast<double>(dispatched) : 0;
  return h;
}

double Window::z_score(double value) {
  double z = 0;
  if (values_.size() >= 8) {
    const double n = static_cast<double>(values_.size());
    const double mean = std::accumulate(values_.begin(), values_.end(), 0.0) / n;
    double squares = 0;
    for (const double v : values_) squares += (v - mean) * (v - mean);
    const double deviation = std::sqrt(squares / n);
    if (deviation > 0) z = (value - mean) / deviation;
  }
  values_.push_back(value);
  if (values_.size() > kSize) values_.pop_front();
  return z;
}

Json Window::json() const { return Json(std::vector<double>(values_.begin(), values_.end())); }

void Window::restore(const Json& json) {
  const auto values = json.get<std::vector<double>>();
  values_.assign(values.begin(), values.end());
}

std::string short_time(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  return fmt::format("{}d{:02}h", s / 86400, s / 3600 % 24);
}

std::string short_count(double value) {
  if (value >= 1e12) return fmt::format("{:.2f}T", value / 1e12);
  if (value >= 1e9) return fmt::format("{:.2f}B", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.2f}M", value / 1e6);
  if (value >= 1e4) return fmt::format("{:.1f}k", value / 1e3);
  return fmt::format("{:.0f}", value);
}

namespace {

constexpr const char* kAdvice =
    "Make room or mend the disk, then run the same command again: it continues from the last checkpoint";

// Keeps the records up to `last_step`, so that the curves of a resumed run do not fork.
void cut_after(const std::filesystem::path& path, int64_t last_step) {
  std::ifstream in(path);
  std::string kept;
  for (std::string line; std::getline(in, line);) {
    const Json record = Json::parse(line, nullptr, false);
    if (record.is_object() && record.contains("step") && record["step"].get<int64_t>() <= last_step)
      kept += line + '\n';
  }
  // Replaced whole: a kill in between must not cost the records of every step so far.
  try {
    checkpoint::write_file_atomically(path, kept);
  } catch (const IoError& error) {
    throw IoError("{}. {}", error.what(), kAdvice);
  }
}

}  // namespace

Metrics::Metrics(const RunConfig& config, const MetricsTarget& target, int64_t start_step, Log& log)
    : config_(config), target_(target), log_(log) {
  if (!target.writes) return;
  if (std::filesystem::exists(target.file)) cut_after(target.file, start_step);
  file_.open(target.file, std::ios::app);
}

void Metrics::append(const Json& record) {
  if (!target_.writes) return;
  file_ << record.dump() << std::endl;
  if (!file_)
    throw IoError("cannot write {}: {}. {}", target_.file.string(), std::generic_category().message(errno), kAdvice);
}

void Metrics::step(int64_t step, const StepReport& report, const StepTimes& times) {
  if (report.skipped) log_.warn("step {} skipped: {}", step, *report.skipped);
  const bool usable = !report.skipped;
  Unusual z;
  if (usable) {
    z = {losses_.z_score(report.loss), norms_.z_score(report.grad_norm)};
    last_ = report.loss;
    best_ = best_ == 0 ? last_ : std::min(best_, last_);
  }
  const double tokens = static_cast<double>(config_.train.global_batch_size * config_.data.seq_len);
  if (!first_) tokens_ += tokens, seconds_ += times.step_seconds;
  line_tokens_ += tokens, line_seconds_ += times.step_seconds, line_data_ += times.data_seconds, ++line_steps_;
  append(record(step, report, times));
  const bool due =
      step <= 2 || step == config_.train.steps || (config_.metrics.every > 0 && step % config_.metrics.every == 0);
  if (usable && due) log_.info(line(step, report, z));
  // The first step pays for warm caches and lazily made buffers; it stays out of every average.
  if (due || first_) line_tokens_ = line_seconds_ = line_data_ = 0, line_steps_ = 0;
  first_ = false;
}

std::string Metrics::line(int64_t step, const StepReport& report, const Unusual& z) const {
  const double steps = static_cast<double>(config_.train.steps);
  const double per_step = line_steps_ > 0 ? line_seconds_ / static_cast<double>(line_steps_) : 0;
  const double rate = line_seconds_ > 0 ? line_tokens_ / line_seconds_ : 0;
  const double all_tokens = static_cast<double>(step * config_.train.global_batch_size * config_.data.seq_len);
  std::string text =
      fmt::format("{:%H:%M:%S} step {}/{} ({:.1f}%) loss {:.4f} (z {:+.1f})", fmt::localtime(std::time(nullptr)), step,
                  config_.train.steps, 100.0 * step / steps, report.loss, z.loss);
  if (report.teacher_loss) text += fmt::format(" distill {:.4f}", *report.teacher_loss);
  const auto& losses = config_.moe.balance.losses;
  for (size_t i = 0; i < losses.size() && !report.layers.empty(); ++i) {
    double sum = 0;
    for (const auto& layer : report.layers) sum += layer.targets > 0 ? layer.losses[i] / layer.targets : 0;
    const bool z_loss = losses[i].type == moe::LossType::kZ;
    text += fmt::format(fmt::runtime(z_loss ? " {} {:.1e}" : " {} {:.3f}"),
                        moe::AuxiliaryLoss::row(losses[i].type).label, sum / static_cast<double>(report.layers.size()));
  }
  text += fmt::format(" gnorm {:.3f} (z {:+.1f}) lr {:.2e} | {} tok/s ({}/rank) step {:.2f}s data {:.1f}%",
                      report.grad_norm, z.norm, report.lr, short_count(rate), short_count(rate / target_.ranks),
                      per_step, line_seconds_ > 0 ? 100 * line_data_ / line_seconds_ : 0.0);
  if (!report.layers.empty()) {
    double worst = 0, dropped = 0, rows = 0;
    int64_t dead = 0, experts = 0;
    for (const auto& layer : report.layers) {
      const auto h = health(layer);
      worst = std::max(worst, h.max_over_mean);
      dropped += h.dropped / static_cast<double>(report.layers.size());
      dead += h.dead;
      rows += h.sent.value_or(1) / static_cast<double>(report.layers.size());
      experts += static_cast<int64_t>(layer.dispatched_E.size());
    }
    text += fmt::format(" | moe imb {:.2f} drop {:.2f}% dead {}/{}", worst, 100 * dropped, dead, experts);
    if (report.layers[0].sent) text += fmt::format(" sent {:.1f}%", 100 * rows);
  }
  return text + fmt::format(" | {} tok eta {}", short_count(all_tokens), short_time((steps - step) * per_step));
}

Json Metrics::record(int64_t step, const StepReport& report, const StepTimes& times) const {
  Json json{{"step", step},
            {"loss", report.loss},
            {"loss_hex", fmt::format("{:a}", report.loss)},
            {"grad_norm", report.grad_norm},
            {"grad_norm_hex", fmt::format("{:a}", report.grad_norm)},
            {"lr", report.lr},
            {"targets", report.targets},
            {"tokens", step * config_.train.global_batch_size * config_.data.seq_len},
            {"step_seconds", times.step_seconds},
            {"data_seconds", times.data_seconds}};
  if (report.teacher_loss) json["distill_loss"] = *report.teacher_loss;
  if (report.skipped) json["skipped"] = *report.skipped;
  Json layers = Json::array();
  for (const auto& layer : report.layers) {
    const auto h = health(layer);
    Json entry{{"load", layer.dispatched_E},
               {"entropy", h.entropy},
               {"max_over_mean", h.max_over_mean},
               {"dead", h.dead},
               {"dropped", h.dropped},
               {"z", layer.tokens > 0 ? layer.lse_squared / static_cast<double>(layer.tokens) : 0.0}};
    Json aux = Json::array();
    for (const double loss : layer.losses) aux.push_back(layer.targets > 0 ? loss / layer.targets : 0.0);
    entry["aux"] = aux;
    // Of routers without scores there is neither.
    if (config_.moe.router.type == "relu" || config_.moe.router.type == "hash") entry["entropy"] = entry["z"] = Json();
    if (config_.moe.router.type == "hierarchical") entry["z"] = Json();  // of two softmaxes there is no one logsumexp
    const int64_t sent = std::accumulate(layer.dispatched_E.begin(), layer.dispatched_E.end(), int64_t{0});
    if (h.sent) entry["sent"] = *h.sent;
    entry["active"] = layer.tokens > 0 ? static_cast<double>(sent) / static_cast<double>(layer.tokens) : 0.0;
    layers.push_back(entry);
  }
  json["moe"] = layers;
  Json coefficients = Json::array();
  for (const auto& value : report.coefficients) coefficients.push_back(value ? Json(*value) : Json());
  if (std::any_of(report.coefficients.begin(), report.coefficients.end(), [](const auto& v) { return v.has_value(); }))
    json["aux_coef"] = coefficients;
  return json;
}

void Metrics::evaluation(int64_t step, const std::string& source, double loss, int64_t tokens) {
  append(
      {{"step", step}, {"eval", source}, {"loss", loss}, {"loss_hex", fmt::format("{:a}", loss)}, {"tokens", tokens}});
}

double Metrics::tokens_per_second() const { return seconds_ > 0 ? tokens_ / seconds_ : 0; }

Json Metrics::json() const {
  return {{"losses", losses_.json()}, {"norms", norms_.json()}, {"best", best_}, {"last", last_}};
}

void Metrics::restore(const Json& json) {
  losses_.restore(json.at("losses"));
  norms_.restore(json.at("norms"));
  best_ = json.at("best");
  last_ = json.at("last");
}

}  // namespace conclave::train
