// SPDX-License-Identifier: Apache-2.0
// Two charts as SVG text, for a page without scripts: curves with bands, and values with their errors.
#pragma once

#include <string>
#include <vector>

namespace conclave::sweep {

struct Curve {
  std::string name;
  std::string colour;
  std::vector<double> x, y, error;  // a band of y ± error; same lengths
};

struct ChartText {
  std::string title, x, y;
};

// The y axis leaves out the fall of the first tenth, where losses of all curves are alike.
std::string curve_chart(const std::vector<Curve>& curves, const ChartText& text);

struct Mark {
  std::string name;
  std::string colour;
  double value = 0, error = 0;
  std::vector<double> single;  // what the value is the mean of
};

std::string mark_chart(const std::vector<Mark>& marks, const ChartText& text);

// `text` for HTML and SVG.
std::string escape_markup(const std::string& text);

}  // namespace conclave::sweep
