#include "io/checkpoint.hpp"

#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "io/json.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr std::size_t kMaxIndexBytes = 64u << 20;
constexpr std::size_t kMaxShards = 4096;
constexpr std::size_t kSampledPages = 64;
constexpr std::size_t kPageBytes = 4096;

std::string quoted(const std::string& text) {
  return json_brief(nlohmann::json(text));
}

bool exists(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 || errno != ENOENT;
}

// weight_map: tensor name → file name, all of them plain names within the directory.
std::map<std::string, std::string> read_weight_map(const std::string& path) {
  const nlohmann::json index = read_json_file(path, kMaxIndexBytes);
  if (!index.is_object()) throw_json_field(path, "", index, "an object with weight_map");
  const nlohmann::json& weight_map = json_object(index, "weight_map", path);
  if (weight_map.empty()) throw_json_field(path, "weight_map", weight_map, "at least one tensor");
  std::map<std::string, std::string> result;
  for (const auto& [tensor, value] : weight_map.items()) {
    if (!value.is_string()) {
      throw_json_field(path, "weight_map." + quoted(tensor), value, "the name of a safetensors file");
    }
    const auto& file = value.get_ref<const std::string&>();
    const bool plain = !file.empty() && file.size() <= 255 && file != "." && file != ".." &&
                       file.find('/') == std::string::npos && file.find('\0') == std::string::npos;
    if (!plain) {
      throw_json_field(path, "weight_map." + quoted(tensor), value,
                       "a plain file name inside the model directory");
    }
    result.emplace(tensor, file);
  }
  return result;
}

// A page at an even spacing from the first to the last of the file; a small file is hashed whole.
void hash_samples(XXH64_state_t* state, const MappedFile& file) {
  const std::size_t size = file.size();
  if (size <= kSampledPages * kPageBytes) {
    XXH64_update(state, file.data(), size);
    return;
  }
  const std::size_t last = (size - kPageBytes) / kPageBytes;
  for (std::size_t i = 0; i < kSampledPages; ++i) {
    const std::size_t begin = last * i / (kSampledPages - 1) * kPageBytes;
    XXH64_update(state, file.data() + begin, kPageBytes);
  }
  const std::size_t tail = (last + 1) * kPageBytes;
  XXH64_update(state, file.data() + tail, size - tail);  // the remainder after the last whole page
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& model_dir) {
  const std::string index_path = model_dir + "/" + kIndexFile;
  const std::string single_path = model_dir + "/" + kSingleFile;
  struct stat status {};
  if (::stat(model_dir.c_str(), &status) != 0) {
    throw InputError("{}: cannot open the model directory: {}; check --model", model_dir, errno_text(errno));
  }
  if (!S_ISDIR(status.st_mode)) {
    throw InputError(
        "{}: cannot open the model directory: it is a file; give the directory that holds config.json",
        model_dir);
  }

  Checkpoint result;
  result.directory_ = model_dir;
  std::map<std::string, std::string> weight_map;
  std::set<std::string> shards;
  if (exists(single_path)) {
    shards.insert(kSingleFile);
  } else if (exists(index_path)) {
    weight_map = read_weight_map(index_path);
    for (const auto& [tensor, file] : weight_map) shards.insert(file);
    if (shards.size() > kMaxShards) {
      throw InputError("{}: weight_map: names {} files, more than the {} allowed", index_path, shards.size(),
                       kMaxShards);
    }
  } else {
    throw InputError(
        "{}: {}: neither it nor {} is there; download the safetensors weights, or use --weights "
        "random:SEED",
        model_dir, kSingleFile, kIndexFile);
  }

  result.files_.reserve(shards.size());
  for (const std::string& shard : shards) {
    if (!weight_map.empty() && !exists(model_dir + "/" + shard)) {
      throw InputError("{}: weight_map: names {}, which is not in {}; download it", index_path, quoted(shard),
                       model_dir);
    }
    result.files_.push_back(SafetensorsFile::open(model_dir + "/" + shard));
    const SafetensorsFile& file = result.files_.back();
    for (const TensorEntry& entry : file.tensors()) {
      const auto [place, inserted] = result.tensors_.emplace(entry.name, Tensor{&file, &entry});
      if (!inserted) {
        throw InputError("{}: {}: the tensor is also in {}; keep one", file.path(), quoted(entry.name),
                         place->second.file->path());
      }
    }
  }
  for (const auto& [tensor, shard] : weight_map) {
    const auto found = result.tensors_.find(tensor);
    const std::string path = model_dir + "/" + shard;
    if (found == result.tensors_.end() || found->second.file->path() != path) {
      throw InputError("{}: {}: missing, though weight_map of {} places it there; download both again", path,
                       quoted(tensor), kIndexFile);
    }
  }
  result.names_.reserve(result.tensors_.size());
  for (const auto& [name, tensor] : result.tensors_) result.names_.push_back(name);
  return result;
}

std::optional<Checkpoint::Tensor> Checkpoint::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return std::nullopt;
  return found->second;
}

std::size_t Checkpoint::total_bytes() const {
  std::size_t bytes = 0;
  for (const SafetensorsFile& file : files_) bytes += file.size();
  return bytes;
}

std::uint64_t Checkpoint::fingerprint() const {
  XXH64_state_t* state = XXH64_createState();
  TESSERA_CHECK(state != nullptr);
  XXH64_reset(state, 0);
  for (const SafetensorsFile& file : files_) {
    const std::uint64_t size = file.size();
    XXH64_update(state, &size, sizeof size);
    XXH64_update(state, file.header().data(), file.header().size());
    hash_samples(state, file.file());
  }
  const std::uint64_t hash = XXH64_digest(state);
  XXH64_freeState(state);
  return hash;
}

}  // namespace tessera
