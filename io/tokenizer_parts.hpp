// What a loaded tokenizer consists of; shared by the loader and the tokenizer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer_added.hpp"
#include "io/tokenizer_bpe.hpp"
#include "io/tokenizer_decoder.hpp"
#include "io/tokenizer_text.hpp"

namespace tessera {

struct TokenizerParts {
  AddedTokenMatcher raw_added;         // found in the text as given
  AddedTokenMatcher normalized_added;  // found after normalisation
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  BpeModel model;
  DecoderChain decoder;
  std::uint64_t fingerprint = 0;

  // Model and added tokens together, by id.
  Vocabulary added;                 // texts of added tokens that the model does not have
  std::vector<bool> special;        // (vocab_size)
  std::string bytes;                // decoded bytes of all tokens, joined
  std::vector<std::uint32_t> ends;  // (vocab_size) where each token's bytes end; they begin at the end before

  std::string_view token_bytes(std::int32_t id) const {
    const auto index = static_cast<std::size_t>(id);
    if (id < 0 || index >= ends.size()) return {};
    const std::uint32_t begin = index == 0 ? 0 : ends[index - 1];
    return std::string_view(bytes).substr(begin, ends[index] - begin);
  }
};

std::shared_ptr<const TokenizerParts> load_tokenizer_parts(std::string_view json_text,
                                                           const std::string& file);

}  // namespace tessera
