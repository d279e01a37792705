// The table of `tessera report`, in the three forms that it is printed in.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "jobs/report.hpp"

namespace tessera {

// kText and kMarkdown: rounded, intervals in brackets, columns left out that are empty in every row,
// and what all rows share (model, length, seed, grid, samples) said once above. kCsv: full precision,
// a number a column, always the same columns.
enum class ReportFormat : std::uint8_t { kText, kMarkdown, kCsv };
ReportFormat parse_report_format(std::string_view name);  // UsageError

std::string report_text(std::span<const ReportRow> rows, ReportFormat format);

}  // namespace tessera
