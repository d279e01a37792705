// What commands print and how they refuse, for tests that call them as functions.
#pragma once

#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "runtime/core/error.hpp"

namespace tessera::test {

// What command(FILE*) prints; it must return 0.
template <typename Command>
std::string printed(Command command) {
  char* text = nullptr;
  std::size_t size = 0;
  std::FILE* out = ::open_memstream(&text, &size);
  int code = 0;
  try {
    code = command(out);
  } catch (...) {
    std::fclose(out);
    std::free(text);
    throw;
  }
  std::fclose(out);
  const std::string result(text, size);
  std::free(text);
  CHECK(code == 0);
  return result;
}

// The one line of the Error with this code that the action throws.
template <typename Action>
std::string message_of(Action action, ExitCode code) {
  try {
    action();
  } catch (const Error& error) {
    CHECK(error.code() == code);
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  FAIL("no error was thrown");
  return "";
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace tessera::test
