// SPDX-License-Identifier: Apache-2.0
#include "sweep/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace conclave::sweep {
namespace {

constexpr double kWidth = 860, kHeight = 420;
constexpr double kLeft = 64, kRight = 16, kTop = 34, kBottom = 46;
constexpr double kRow = 24;

// Values along an axis, from `low` at `begin` to `high` at `end` of the drawing.
struct Scale {
  double low, high, begin, end;
  double operator()(double value) const { return begin + (value - low) / (high - low) * (end - begin); }
};

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void take(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  // Some room around; never empty.
  Range widened(double share) const {
    if (low > high) return {0, 1};
    const double room = high > low ? share * (high - low) : std::max(std::abs(high) * 0.01, 1e-9);
    return {low - room, high + room};
  }
};

// About `count` round numbers: 1, 2 or 5 times a power of ten apart.
std::vector<double> round_numbers(double low, double high, int count) {
  const double raw = (high - low) / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw) {
      step = factor * power;
      break;
    }
  }
  std::vector<double> numbers;
  for (double n = std::ceil(low / step); n * step <= high; ++n) numbers.push_back(n * step);
  return numbers;
}

std::string number(double value) { return fmt::format("{:.4g}", std::abs(value) < 1e-12 ? 0.0 : value); }

// What fits beside a mark; the whole name is in the table and in a tooltip.
std::string shortened(const std::string& name) {
  constexpr size_t kMost = 48;
  return name.size() <= kMost ? name : fmt::format("{:.{}}…", name, kMost - 1);
}

std::string opening(double height, const std::string& title) {
  return fmt::format(
      "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n<text x=\"{}\" y=\"18\" class=\"title\">{}</text>\n",
      kWidth, height, escape_markup(title), kLeft, escape_markup(title));
}

std::string horizontal_axis(const Scale& x, double top, double bottom, const std::string& name) {
  std::string svg;
  for (const double value : round_numbers(x.low, x.high, 7)) {
    svg += fmt::format(
        "<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\" class=\"grid\"/>"
        "<text x=\"{0:.1f}\" y=\"{3}\" class=\"tick\" text-anchor=\"middle\">{4}</text>\n",
        x(value), top, bottom, bottom + 16, number(value));
  }
  return svg + fmt::format("<text x=\"{:.1f}\" y=\"{}\" class=\"name\" text-anchor=\"middle\">{}</text>\n",
                           (x.begin + x.end) / 2, bottom + 36, escape_markup(name));
}

std::string vertical_axis(const Scale& y, const std::string& name) {
  std::string svg;
  for (const double value : round_numbers(y.low, y.high, 6)) {
    svg += fmt::format(
        "<line x1=\"{1}\" x2=\"{2}\" y1=\"{0:.1f}\" y2=\"{0:.1f}\" class=\"grid\"/>"
        "<text x=\"{3}\" y=\"{4:.1f}\" class=\"tick\" text-anchor=\"end\">{5}</text>\n",
        y(value), kLeft, kWidth - kRight, kLeft - 6, y(value) + 4, number(value));
  }
  return svg + fmt::format(
                   "<text transform=\"translate(14,{:.1f}) rotate(-90)\" class=\"name\" "
                   "text-anchor=\"middle\">{}</text>\n",
                   (y.begin + y.end) / 2, escape_markup(name));
}

std::string curve_path(const Curve& curve, const Scale& x, const Scale& y) {
  std::string line, upper, lower;
  for (size_t i = 0; i < curve.x.size(); ++i) {
    line += fmt::format("{:.1f},{:.1f} ", x(curve.x[i]), y(curve.y[i]));
    upper += fmt::format("{:.1f},{:.1f} ", x(curve.x[i]), y(curve.y[i] + curve.error[i]));
    const size_t back = curve.x.size() - 1 - i;
    lower += fmt::format("{:.1f},{:.1f} ", x(curve.x[back]), y(curve.y[back] - curve.error[back]));
  }
  return fmt::format(
      "<g><title>{0}</title><polygon points=\"{1}{2}\" fill=\"{3}\" fill-opacity=\"0.15\"/>"
      "<polyline points=\"{4}\" fill=\"none\" stroke=\"{3}\" stroke-width=\"1.6\"/></g>\n",
      escape_markup(curve.name), upper, lower, curve.colour, line);
}

}  // namespace

std::string escape_markup(const std::string& text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

std::string curve_chart(const std::vector<Curve>& curves, const ChartText& text) {
  Range across, along;
  for (const Curve& curve : curves) {
    for (size_t i = 0; i < curve.x.size(); ++i) {
      along.take(curve.x[i]);
      if (10 * i < curve.x.size()) continue;
      across.take(curve.y[i] - curve.error[i]);
      across.take(curve.y[i] + curve.error[i]);
    }
  }
  const Range shown = across.widened(0.05);
  along.take(0);
  const Range width = along.high > along.low ? along : Range{0, 1};
  const Scale x{width.low, width.high, kLeft, kWidth - kRight};
  const Scale y{shown.low, shown.high, kHeight - kBottom, kTop};
  std::string svg =
      opening(kHeight, text.title) + horizontal_axis(x, kTop, kHeight - kBottom, text.x) + vertical_axis(y, text.y);
  svg += fmt::format(
      "<clipPath id=\"plot\"><rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/></clipPath>\n"
      "<g clip-path=\"url(#plot)\">\n",
      kLeft, kTop, kWidth - kLeft - kRight, kHeight - kTop - kBottom);
  // The first is the most important one: drawn last, on top.
  for (size_t i = curves.size(); i-- > 0;) svg += curve_path(curves[i], x, y);
  return svg + "</g>\n</svg>\n";
}

std::string mark_chart(const std::vector<Mark>& marks, const ChartText& text) {
  constexpr double kNames = 330;
  Range range;
  for (const Mark& mark : marks) {
    range.take(mark.value - mark.error);
    range.take(mark.value + mark.error);
    for (const double value : mark.single) range.take(value);
  }
  const Range shown = range.widened(0.05);
  const double bottom = kTop + kRow * static_cast<double>(marks.size());
  const Scale x{shown.low, shown.high, kNames, kWidth - kRight};
  std::string svg = opening(bottom + kBottom, text.title) + horizontal_axis(x, kTop, bottom, text.x);
  for (size_t i = 0; i < marks.size(); ++i) {
    const Mark& mark = marks[i];
    const double y = kTop + kRow * (static_cast<double>(i) + 0.5);
    svg += fmt::format("<text x=\"{}\" y=\"{:.1f}\" class=\"label\" text-anchor=\"end\"><title>{}</title>{}</text>\n",
                       kNames - 10, y + 4, escape_markup(mark.name), escape_markup(shortened(mark.name)));
    for (const double value : mark.single) {
      svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\" fill=\"{}\" fill-opacity=\"0.45\"/>\n",
                         x(value), y, mark.colour);
    }
    svg += fmt::format(
        "<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" stroke-width=\"2\"/>"
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"5\" fill=\"{}\"/>\n",
        x(mark.value - mark.error), x(mark.value + mark.error), y, y, mark.colour, x(mark.value), y, mark.colour);
  }
  return svg + "</svg>\n";
}

}  // namespace conclave::sweep
