#include "jobs/eval_samples.hpp"

#include <algorithm>
#include <exception>

#include "parallel/agreement.hpp"
#include "runtime/core/bytes.hpp"

namespace tessera {
namespace {

void pack_sample(ByteWriter& writer, const PreparedSample& s) {
  writer.value(s.which);
  writer.value(s.content.index);
  writer.array(s.content.tokens);
  writer.value(s.content.references.size());
  for (const std::string& reference : s.content.references) writer.array(reference);
  writer.array(s.content.metadata_json);
  writer.value(s.content.prompt_hash);
}

PreparedSample unpack_sample(ByteReader& reader) {
  PreparedSample s;
  reader.value(s.which);
  reader.value(s.content.index);
  reader.array(s.content.tokens);
  std::size_t references = 0;
  reader.value(references);
  for (std::size_t i = 0; i < references; ++i) {
    std::string reference;
    reader.array(reference);
    s.content.references.push_back(std::move(reference));
  }
  reader.array(s.content.metadata_json);
  reader.value(s.content.prompt_hash);
  return s;
}

std::vector<PreparedSample> make_share(const std::vector<PendingSample>& share,
                                       const std::vector<const Task*>& tasks, const TaskContext& context,
                                       const std::function<bool()>& stop_requested) {
  std::vector<PreparedSample> made(share.size());
  std::exception_ptr failure;  // an exception may not leave a parallel region
#pragma omp parallel for schedule(dynamic)
  for (std::size_t i = 0; i < share.size(); ++i) {
    if (stop_requested()) continue;
    try {
      const Task& task = *tasks[static_cast<std::size_t>(share[i].point)];
      made[i] = {share[i], task.generate(context, share[i].sample)};
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
  return made;
}

}  // namespace

std::vector<PreparedSample> prepare_samples(Communicator& world, std::vector<PendingSample> pending,
                                            const std::vector<const Task*>& tasks, const TaskContext& context,
                                            const std::function<bool()>& stop_requested) {
  std::size_t count = pending.size();
  world.broadcast(&count, sizeof count, 0);
  pending.resize(count);
  world.broadcast(pending.data(), count * sizeof(PendingSample), 0);

  std::vector<PendingSample> share;
  for (std::size_t i = static_cast<std::size_t>(world.rank()); i < count;
       i += static_cast<std::size_t>(world.size())) {
    share.push_back(pending[i]);
  }
  ByteWriter writer;
  run_agreed(world, [&] {
    for (const PreparedSample& sample : make_share(share, tasks, context, stop_requested)) {
      pack_sample(writer, sample);
    }
  });

  std::vector<PreparedSample> all;
  for (const auto& part : world.gather(writer.take(), 0)) {
    for (ByteReader reader(part); !reader.empty();) all.push_back(unpack_sample(reader));
  }
  std::sort(all.begin(), all.end(), [](const PreparedSample& a, const PreparedSample& b) {
    if (a.content.tokens.size() != b.content.tokens.size())
      return a.content.tokens.size() > b.content.tokens.size();
    return std::pair(a.which.point, a.which.sample) < std::pair(b.which.point, b.which.sample);
  });
  return all;
}

}  // namespace tessera
