#include "runtime/engine/engine_main.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <exception>
#include <new>
#include <set>
#include <string>
#include <vector>

#include "runtime/engine/blocks.h"
#include "runtime/engine/build_info.h"
#include "runtime/engine/cores.h"
#include "runtime/engine/cpu_features.h"
#include "runtime/engine/error.h"
#include "runtime/engine/json.h"
#include "runtime/engine/line_writer.h"
#include "runtime/engine/machine.h"
#include "runtime/engine/protocol.h"
#include "runtime/engine/request_queue.h"
#include "runtime/engine/server.h"
#include "runtime/engine/thread.h"
#include "runtime/engine/thread_pool.h"

namespace minicpmv {
namespace {

namespace event = protocol::event;
namespace field = protocol::field;

constexpr int kEnded = 0, kFailed = 1;  // what engine_main returns

// Makes this engine the only one of the process. TVM's registry of types and its pool of memory are
// global, and two engines would compete for the same cores.
class OnlyEngine {
 public:
  // Throws EngineError (already_running).
  OnlyEngine() {
    if (running_.exchange(true)) {
      throw EngineError(error_code::kAlreadyRunning,
                        "this process runs an engine already; end it first");
    }
  }
  ~OnlyEngine() {
    Blocks::ReleaseMemory();
    running_ = false;
  }

  OnlyEngine(const OnlyEngine&) = delete;
  OnlyEngine& operator=(const OnlyEngine&) = delete;

 private:
  static inline std::atomic<bool> running_{false};
};

template <typename Texts>
json::Array Strings(const Texts& texts) {
  json::Array strings;
  for (const std::string& text : texts) strings.push_back(tvm::ffi::String(text));
  return strings;
}

Line Hello(const std::set<std::string>& features, const std::vector<std::string>& refused,
           const std::vector<std::string>& kinds, int threads) {
  return Line()
      .Set(field::kEvent, event::kHello)
      .Set(field::kProtocol, protocol::kVersion)
      .Set(field::kToolkitVersion, kVersion)
      .Set(field::kTarget, kTarget)
      .Set(field::kProgramId, kProgramId)
      .Set(field::kCpuFeatures, Strings(features))
      .Set(field::kRefused, Strings(refused))
      .Set(field::kKinds, Strings(kinds))
      .Set(field::kThreads, int64_t{threads})
      .Set(field::kCpu, CpuName())
      .Set(field::kMemoryBytes, MemoryBytes());
}

void Serve(int in_fd, const LineWriter& writer) {
  const OnlyEngine only;
  std::vector<std::string> refused;
  const std::set<std::string> features = CpuFeatures(&refused);
  const std::vector<std::string> kinds = RunnableBlocks(kBlockLibraries, features);
  ThreadPool pool(PlanThreads());
  writer.Write(Hello(features, refused, kinds, pool.threads()));
  RequestQueue queue(in_fd, protocol::kLineLimit, &pool);
  Server({kTarget, kProgramId, kinds}, &writer).Run(&queue);
}

// Sends an error that ends the engine.
void SendLast(const LineWriter& writer, const std::string& code, const std::string& message) {
  try {
    writer.Write(Line()
                     .Set(field::kEvent, event::kError)
                     .Set(field::kCode, code)
                     .Set(field::kMessage, message));
  } catch (const ReaderGone&) {
    return;  // and nobody is there to tell
  }
}

int Run(int in_fd, const LineWriter& writer) {
  try {
    Serve(in_fd, writer);
    return kEnded;
  } catch (const ReaderGone&) {
    return kFailed;
  } catch (const EngineError& error) {
    SendLast(writer, error.code(), error.what());
  } catch (const std::bad_alloc&) {
    SendLast(writer, error_code::kOutOfMemory, "not enough memory");
  } catch (const std::exception& error) {
    SendLast(writer, error_code::kInternal, error.what());
  }
  return kFailed;
}

// Blocks the signal of a write that nobody reads, in this thread and those that it starts.
void BlockSigpipe() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

}  // namespace
}  // namespace minicpmv

int engine_main(int in_fd, int out_fd) {
  using namespace minicpmv;
  const LineWriter writer(out_fd);
  int result = kFailed;
  try {
    // A thread of its own: what the engine and TVM keep for each thread ends with it, and the
    // caller's stack may be small.
    const Thread engine([&result, in_fd, &writer] {
      BlockSigpipe();
      result = Run(in_fd, writer);
    });
  } catch (const EngineError& error) {
    SendLast(writer, error.code(), error.what());
  }
  return result;
}
