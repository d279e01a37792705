#include "io/chat_prompt.hpp"

#include <doctest/doctest.h>

using namespace tessera;

TEST_CASE("chat prompt: the three families") {
  CHECK(chat_prompt(ChatFamily::kQwen2, "Hi") ==
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  CHECK(
      chat_prompt(ChatFamily::kLlama3, "Hi") ==
      "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
      "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\n");
  CHECK(chat_prompt(ChatFamily::kGemma3, "Hi") ==
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n");
}

TEST_CASE("chat prompt: Llama and Gemma trim the message, Qwen does not") {
  const char* const padded = " \n\u00a0\u3000\x1f a {b} \u2028\t\n";
  CHECK(chat_prompt(ChatFamily::kQwen2, padded).find(std::string("user\n") + padded + "<|im_end|>") !=
        std::string::npos);
  CHECK(chat_prompt(ChatFamily::kLlama3, padded) == chat_prompt(ChatFamily::kLlama3, "a {b}"));
  CHECK(chat_prompt(ChatFamily::kGemma3, padded) == chat_prompt(ChatFamily::kGemma3, "a {b}"));
  CHECK(chat_prompt(ChatFamily::kGemma3, " \n ") == chat_prompt(ChatFamily::kGemma3, ""));
  CHECK(chat_prompt(ChatFamily::kGemma3, "\u200b") !=
        chat_prompt(ChatFamily::kGemma3, ""));  // no white space
}
