// Reading answers from what a model wrote. The rules here are part of the meaning of a score:
//
// - The answer is the text of the last complete <answer>…</answer>; the tags' case and blanks inside them do
// not
//   matter. A model that quotes the format first and answers afterwards is read by its answer. Without both
//   tags there is no answer.
// - Texts are compared normalised: lower case (ASCII), runs of white space as one blank, none at the ends.
// - A list is asked for as one item a line, "1. item". Read as well: "1) item", "(1) item", "1: item", "-
// item",
//   "* item", "• item", items on one line between commas or semicolons, "key: value" (the value counts),
//   items in quotes, back-quotes or asterisks, and a full stop or comma at the end. Items between blanks
//   alone are one item.
// - Where every item has a number and numbers rise from 1 or more, an item stands where its number says, so
// that
//   one left out does not shift the rest; numbers beyond the expected count are ignored.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

// Nothing where a tag is missing.
std::optional<std::string_view> extract_answer(std::string_view prediction);

std::string normalise(std::string_view text);

struct AnswerList {
  std::vector<std::string>
      items;              // normalised; as many as were expected where numbers placed them ("" if left out)
  std::size_t found = 0;  // items that were written
};

AnswerList parse_answer_list(std::string_view answer, std::size_t expected);

}  // namespace tessera
