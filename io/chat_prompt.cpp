#include "io/chat_prompt.hpp"

#include "io/utf8.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

namespace {

// White space as Python's str.strip sees it, since the families' templates are written for Python.
bool is_python_space(char32_t value) {
  return is_white_space(value) || (value >= 0x1C && value <= 0x1F);
}

std::string trimmed(std::string_view message) {
  const std::string text = is_valid_utf8(message) ? std::string(message) : repair_utf8(message);
  std::size_t begin = 0;
  std::size_t end = text.size();
  while (begin < end) {
    const CodePoint c = code_point_at(text, begin);
    if (!is_python_space(c.value)) break;
    begin += c.size;
  }
  while (end > begin) {
    const CodePoint c = code_point_before(text, end);
    if (!is_python_space(c.value)) break;
    end -= c.size;
  }
  return text.substr(begin, end - begin);
}

}  // namespace

std::string chat_prompt(ChatFamily family, std::string_view user_message) {
  switch (family) {
    case ChatFamily::kQwen2:
      return fmt::format(
          "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
          "assistant.<|im_end|>\n"
          "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
          user_message);
    case ChatFamily::kLlama3:
      return fmt::format(
          "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
          "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
          "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\n",
          trimmed(user_message));
    case ChatFamily::kGemma3:
      return fmt::format("<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
                         trimmed(user_message));
  }
  throw InternalError("internal error: chat family {} has no prompt", static_cast<int>(family));
}

}  // namespace tessera
