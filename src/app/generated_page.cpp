// SPDX-License-Identifier: Apache-2.0
#include "app/generated_page.h"

#include <fstream>
#include <sstream>

#include "config/schema.h"
#include "core/error.h"

namespace conclave::app {

void renew_page(const std::string& file, std::string_view command, const std::string& generated) {
  std::ifstream old(file, std::ios::binary);
  std::ostringstream text;
  text << old.rdbuf();
  if (!old) throw IoError("{}: cannot be read; the page to renew must exist", file);
  const std::string page = config::replace_generated(text.str(), command, generated);
  std::ofstream stream(file, std::ios::binary | std::ios::trunc);
  stream << page;
  stream.close();
  if (!stream) throw IoError("{}: cannot be written", file);
}

}  // namespace conclave::app
