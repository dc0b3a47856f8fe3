// SPDX-License-Identifier: Apache-2.0
// A diagnosis as text for a terminal and as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/doctor_diagnosis.h"

namespace conclave::app {

std::string report_text(const Diagnosis& diagnosis, const std::vector<Finding>& findings);
nlohmann::json report_json(const Diagnosis& diagnosis, const std::vector<Finding>& findings);

}  // namespace conclave::app
