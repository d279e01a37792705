// The generation engine: greedy decoding of many requests on one replica (the tp·sp ranks of a group), which
// step together. The leader (tp 0, sp 0) owns the source of requests; a finished sequence is replaced at
// once, prefills go one at a time between decode steps.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "parallel/grid.hpp"
#include "runtime/core/memory.hpp"
#include "runtime/model/completion.hpp"
#include "runtime/model/language_model.hpp"

namespace tessera {

// Called on the leader only.
class RequestSource {
 public:
  virtual ~RequestSource() = default;
  virtual std::optional<Request> next() = 0;  // empty: there are no more
  virtual void finished(Completion completion) = 0;
  virtual bool stop_requested() = 0;
};

struct EngineOptions {
  int batch = 1;                       // sequences that decode together
  std::vector<std::int32_t> stop_ids;  // any of them ends a sequence
};

class Engine {
 public:
  Engine(LanguageModel& model, Grid& grid, const MemoryMeter& meter, EngineOptions options);
  ~Engine();

  // Until the source is dry or asks to stop; true when it ran dry. `source` is read on the leader and may be
  // null elsewhere. Collective over the group.
  bool run(RequestSource* source);

 private:
  struct Active;
  struct Command;

  Command agree(RequestSource* source);
  void admit(const Command& command, RequestSource* source);
  void step(RequestSource* source);
  void accept_token(Active& active, std::int32_t token);
  void complete_finished(RequestSource* source);
  RankReport report(const Active& active) const;

  LanguageModel& model_;
  Grid& grid_;
  const MemoryMeter& meter_;
  EngineOptions options_;
  std::vector<std::unique_ptr<Active>> active_;
  std::optional<Request> incoming_;  // of the leader: drawn, not yet admitted
  bool dry_ = false;
};

}  // namespace tessera
