// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "config/document.h"
#include "config/suggest.h"
#include "config/yaml.h"

namespace conclave::config {
namespace {

constexpr std::string_view option_name(Override::Kind kind) {
  switch (kind) {
    case Override::Kind::kSet:
      return "--set";
    case Override::Kind::kSetFile:
      return "--set-file";
    case Override::Kind::kUnset:
      return "--unset";
  }
  return "";
}

// One override being applied: its text, the path before "=" and where to point in messages.
class Edit {
 public:
  Edit(const Override& override, size_t number, Problems& problems) : kind_(override.kind), problems_(problems) {
    auto source = std::make_shared<Source>();
    source->name = fmt::format("{} #{}", option_name(kind_), number);
    source->text = override.text;
    source->argument = true;
    source_ = source;
    path_ = override.text.substr(0, override.text.find('='));
    origin_ = {source_, 1, 1, static_cast<int>(path_.size()), {}};
  }

  void apply(Node& root, const Schema& schema) {
    if (kind_ != Override::Kind::kUnset && path_.size() == source_->text.size()) {
      problems_.fail(origin_, "",
                     fmt::format("expected {} path=value, for example --set optim.lr=1e-4", option_name(kind_)));
    }
    const std::vector<Step> steps = split_path(path_);
    if (steps.empty()) {
      problems_.fail(origin_, "", fmt::format("'{}' is no path such as optim.lr or data.train[0].weight", path_));
    }
    if (kind_ == Override::Kind::kUnset) return unset(root, steps, schema);
    Node value = read_value();
    if (Node* place = descend(root, steps)) {
      *place = std::move(value);
    }
  }

 private:
  Node read_value() {
    if (kind_ == Override::Kind::kSet) {
      Node value = parse_yaml(source_, problems_, path_.size() + 1);
      if (value.is_null()) value.origin = origin_;
      return value;
    }
    const std::string file = source_->text.substr(path_.size() + 1);
    return parse_yaml(read_source(file, file), problems_);
  }

  // The node at `steps`, created where a section or the next item of a list is missing.
  Node* descend(Node& root, const std::vector<Step>& steps) {
    Node* node = &root;
    for (const Step& step : steps) {
      if (const size_t* index = std::get_if<size_t>(&step)) {
        if (!node->is_list() || *index > node->list.size()) return refuse_index(*node, *index);
        if (*index == node->list.size()) node->list.emplace_back();
        node = &node->list[*index];
        continue;
      }
      if (node->is_null()) {
        node->kind = Node::Kind::kMap;
        node->origin = origin_;
      }
      if (!node->is_map()) {
        problems_.add(origin_, path_,
                      fmt::format("'{}' would go into {}, which is no section; set the whole value",
                                  std::get<std::string>(step), describe_found(*node)));
        return nullptr;
      }
      node = &node->at_or_new(std::get<std::string>(step), origin_);
    }
    return node;
  }

  Node* refuse_index(const Node& node, size_t index) {
    problems_.add(origin_, path_,
                  node.is_list() ? fmt::format("[{}] is beyond the list, which has {} items", index, node.list.size())
                                 : std::string("the list is not written in the configuration; set it as a whole"));
    return nullptr;
  }

  void unset(Node& root, const std::vector<Step>& steps, const Schema& schema) {
    if (find(schema, path_) == nullptr) {
      const std::vector<std::string> paths = leaf_paths(schema);
      problems_.add(origin_, path_, "unknown key" + did_you_mean(path_, paths));
      return;
    }
    const size_t cut = path_.find_last_of(".[");
    Node* parent = cut == std::string::npos
                       ? &root
                       : const_cast<Node*>(find(std::as_const(root), std::string_view(path_).substr(0, cut)));
    if (parent == nullptr) return;  // not written, so it has its default already
    if (const size_t* index = std::get_if<size_t>(&steps.back())) {
      if (*index >= parent->list.size()) {
        refuse_index(*parent, *index);
      } else {
        parent->list.erase(parent->list.begin() + static_cast<std::ptrdiff_t>(*index));
      }
    } else {
      parent->erase(std::get<std::string>(steps.back()));
    }
  }

  Override::Kind kind_;
  Problems& problems_;
  std::shared_ptr<const Source> source_;
  std::string path_;
  Origin origin_;
};

}  // namespace

void apply_overrides(Node& root, std::span<const Override> overrides, const Schema& schema, Problems& problems) {
  size_t numbers[3] = {0, 0, 0};
  for (const Override& override : overrides) {
    Edit(override, ++numbers[static_cast<size_t>(override.kind)], problems).apply(root, schema);
  }
}

}  // namespace conclave::config
