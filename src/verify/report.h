// SPDX-License-Identifier: Apache-2.0
// A verification as people read it, line by line while it runs, and as JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "verify/verify.h"

namespace conclave::verify {

// What is compared with what, what was left out and why, and the heading of the table.
std::string heading(const train::RunConfig& config, const LayoutPlan& plan, const VerifyOptions& options,
                    const std::string& transport);
// Before the rows of layouts with another batch.
std::string heading_of(const OtherBatch& other);
// One line; a second one for a broken promise says what differs first.
std::string row_text(const Row& row);
std::string closing(const std::vector<Row>& rows, const VerifyOptions& options);
// No promise is broken, and where there are rows some could be judged.
bool all_hold(const std::vector<Row>& rows);

nlohmann::json to_json(const train::RunConfig& config, const LayoutPlan& plan, const VerifyOptions& options,
                       const std::vector<Row>& rows);

}  // namespace conclave::verify
