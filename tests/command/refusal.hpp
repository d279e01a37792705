// What every refusal of the command must be: its exit code, and one line on standard error that names what is
// wrong.
#pragma once

#include <string>
#include <vector>

#include "tests/command/run_command.hpp"

namespace tessera::test {

constexpr const char* kQwen = "qwen2-tied";
constexpr const char* kSharded = "qwen2-untied-yarn";
constexpr const char* kGemma = "gemma3";
constexpr const char* kLlama = "llama3";

// An eval of one sample that every fixture answers.
Words eval(const std::string& model, const std::string& trace);
// The same with another value of an option that is there.
Words with(Words words, const std::string& option, const std::string& value);

// says: parts of the message (the file, the field, the values).
void check_refused(const CommandResult& result, int code, const std::vector<std::string>& says);
bool is_empty(const std::string& folder);

}  // namespace tessera::test
