// The chat prompt around one user message, with the special tokens spelled out.
#pragma once

#include <string>
#include <string_view>

namespace tessera {

enum class ChatFamily { kQwen2, kLlama3, kGemma3 };

// The text up to where the model answers. BOS is in it where the family has one (Llama, Gemma), so the
// tokenizer must not add it. Llama and Gemma trim white space off both ends of the message, Qwen does not.
std::string chat_prompt(ChatFamily family, std::string_view user_message);

}  // namespace tessera
