// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "config/document.h"
#include "config/merge.h"
#include "config/yaml.h"

namespace conclave::config {
namespace {

constexpr size_t kMaxFiles = 64;  // read in all, a file included twice counted twice

class Includer {
 public:
  explicit Includer(Problems& problems) : problems_(problems) {}

  Node read(const std::filesystem::path& file, const std::string& shown) {
    const auto source = read_source(file, shown);
    Node root = parse_yaml(source, problems_);
    if (!root.is_map() && !root.is_null()) {
      problems_.fail(root.origin, "",
                     "a configuration consists of sections such as 'model:'; found " + describe_found(root));
    }
    std::error_code error;
    open_.push_back(std::filesystem::weakly_canonical(file, error));
    Node merged;
    merged.kind = Node::Kind::kMap;
    if (const Node* list = root.get("include")) {
      for (const Node& item : items_of(*list)) merge(merged, included(item, source->directory));
      root.erase("include");
    }
    open_.pop_back();
    if (root.is_null()) root.kind = Node::Kind::kMap;
    merge(merged, std::move(root));
    return merged;
  }

 private:
  const std::vector<Node>& items_of(const Node& list) {
    if (!list.is_list()) problems_.fail(list.origin, "include", "expected a list of files such as [base.yaml]");
    return list.list;
  }

  Node included(const Node& item, const std::filesystem::path& directory) {
    if (!item.is_scalar() || item.text.empty()) {
      problems_.fail(item.origin, "include", "expected the name of a file, found " + describe_found(item));
    }
    const std::filesystem::path file = (directory / item.text).lexically_normal();
    std::error_code error;
    const auto canonical = std::filesystem::weakly_canonical(file, error);
    if (std::find(open_.begin(), open_.end(), canonical) != open_.end()) {
      problems_.fail(item.origin, "include", fmt::format("{} includes itself, through this line", file.string()));
    }
    if (++files_ > kMaxFiles) problems_.fail(item.origin, "include", fmt::format("more than {} files", kMaxFiles));
    if (!std::filesystem::is_regular_file(file, error)) {
      problems_.fail(item.origin, "include",
                     fmt::format("there is no file {} (relative to the file with the include)", file.string()));
    }
    return read(file, file.string());
  }

  Problems& problems_;
  std::vector<std::filesystem::path> open_;  // the chain of files being read
  size_t files_ = 0;
};

}  // namespace

void merge(Node& base, Node over) {
  if (!base.is_map() || !over.is_map()) {
    base = std::move(over);
    return;
  }
  for (Entry& entry : over.map) {
    if (Node* known = base.get(entry.key)) {
      merge(*known, std::move(entry.value));
    } else {
      base.map.push_back(std::move(entry));
    }
  }
  base.origin = over.origin;
}

Node read_with_includes(const std::filesystem::path& file, Problems& problems) {
  return Includer(problems).read(file, file.string());
}

Node load_document(const std::filesystem::path& file, std::span<const Override> overrides, const Schema& schema,
                   Problems& problems) {
  Node root = read_with_includes(file, problems);
  apply_overrides(root, overrides, schema, problems);
  expand_references(root, schema, problems);
  return root;
}

}  // namespace conclave::config
