// All safetensors files of a Hugging Face model directory: model.safetensors, or else the shards that
// model.safetensors.index.json names. Where both are there the single file wins, as in transformers.
//
// The index may name only plain files inside the directory: no '/', no "..". A link that lies in the
// directory is followed wherever it leads, since that is how the Hugging Face cache stores every file:
// whoever made the directory put it there, whereas the index comes with the download.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.hpp"

namespace tessera {

class Checkpoint {
 public:
  // InputError: neither file is there, a bad index or shard, a tensor that the index places in a file that
  // lacks it, a tensor found in two files. metadata.total_size is not checked: published indexes get it
  // wrong.
  static Checkpoint open(const std::string& model_dir);

  struct Tensor {
    const SafetensorsFile* file;
    const TensorEntry* entry;

    const std::byte* data() const { return file->data(*entry); }
  };

  std::optional<Tensor> find(std::string_view name) const;
  const std::vector<std::string>& names() const { return names_; }      // sorted
  const std::vector<SafetensorsFile>& files() const { return files_; }  // ordered by file name
  const std::string& directory() const { return directory_; }
  std::size_t total_bytes() const;  // of all files, headers included

  // xxHash64 over the header, the size and 64 evenly spaced pages of 4 KiB of every file, in the order of
  // file names. Says with near certainty that two directories hold the same weights, at a cost that does not
  // grow with them; it cannot see a change that falls between the sampled pages.
  std::uint64_t fingerprint() const;

 private:
  std::string directory_;
  std::vector<SafetensorsFile> files_;
  std::vector<std::string> names_;
  std::map<std::string, Tensor, std::less<>> tensors_;  // point into files_, whose elements never move
};

}  // namespace tessera
