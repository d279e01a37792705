// The text of one journal line and of the bodies in it. Internal to the journal's reader and writer.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "io/trace_schema.hpp"

namespace tessera {

inline constexpr std::string_view kFirstLineStart = "{\"seq\":0,\"crc\":\"";

std::string journal_line(std::int64_t seq, std::string_view body);  // newline included

struct ParsedLine {
  std::int64_t seq = 0;
  std::string_view body;
};
// `line` without its newline. Nothing when it is not of this form or its CRC does not hold.
std::optional<ParsedLine> parse_journal_line(std::string_view line);

// JSON text. Bytes that are not UTF-8 become U+FFFD, NaN and infinities null.
std::string body_text(const nlohmann::json& body);

// Makes a record what its line will say when it is read again: text that is UTF-8 without NUL bytes (which
// HDF5 strings cannot hold; both become U+FFFD), and NaN for infinities, which JSON does not have.
template <typename Record>
void normalize_columns(Record* record);

nlohmann::json point_body(const PointInfo& point, std::size_t index);
nlohmann::json attempt_row(const AttemptRank& rank);
nlohmann::json sample_body(const SampleRecord& sample);

// `where` begins error messages: "FILE: line N". InputError for a missing or wrong field.
PointInfo decode_point(const nlohmann::json& body, const std::string& where);
AttemptRank decode_attempt_row(const nlohmann::json& row, const std::string& where);
// Scalars only.
SampleRecord decode_sample(const nlohmann::json& body, const std::string& where);
// The arrays of the same body, whose sizes follow from the point.
void decode_sample_arrays(const nlohmann::json& body, const TraceDims& dims, const std::string& where,
                          SampleRecord* sample);

}  // namespace tessera
