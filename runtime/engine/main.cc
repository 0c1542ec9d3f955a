// The engine: a process that reads JSON requests from stdin and writes JSON events to stdout; see
// PROTOCOL.md.
#include <tvm/ffi/function.h>
#include <unistd.h>

#include <cstdlib>
#include <set>
#include <string>

#include "runtime/engine/build_info.h"
#include "runtime/engine/cpu_features.h"
#include "runtime/engine/error.h"
#include "runtime/engine/json.h"
#include "runtime/engine/line_writer.h"
#include "runtime/engine/machine.h"
#include "runtime/engine/protocol.h"
#include "runtime/engine/request_queue.h"
#include "runtime/engine/server.h"

namespace minicpmv {
namespace {

namespace event = protocol::event;
namespace field = protocol::field;

void SetThreads() {
  // TVM would pin threads to cores starting at the first one, even if this process may not run
  // there; the scheduler knows better which cores are free.
  setenv("TVM_BIND_THREADS", "0", 0);
  constexpr char kVariable[] = "TVM_NUM_THREADS";
  // On x86-64 TVM uses half of the processors, as if each were one of two hardware threads.
  if (const int cores = DefaultThreads(); cores > 0) {
    setenv(kVariable, std::to_string(cores).c_str(), 0);
  }
  // Allow as many threads as were requested, not only one for each fast core.
  constexpr int kFastCores = 1;
  const char* wanted = std::getenv(kVariable);
  const int threads = wanted == nullptr ? 0 : std::atoi(wanted);
  if (threads < 1) return;
  tvm::ffi::Function::GetGlobalRequired("runtime.config_threadpool")(kFastCores, threads);
}

Line Hello(const std::set<std::string>& features, const BlockLibrary& blocks) {
  json::Array names;
  for (const std::string& feature : features) names.push_back(tvm::ffi::String(feature));
  const auto threads = tvm::ffi::Function::GetGlobalRequired("runtime.NumThreads")();
  return Line()
      .Set(field::kEvent, event::kHello)
      .Set(field::kProtocol, protocol::kVersion)
      .Set(field::kToolkitVersion, kVersion)
      .Set(field::kTarget, kTarget)
      .Set(field::kProgramId, kProgramId)
      .Set(field::kCpuFeatures, names)
      .Set(field::kBlocks, blocks.prefix)
      .Set(field::kThreads, threads.cast<int64_t>())
      .Set(field::kCpu, CpuName())
      .Set(field::kMemoryBytes, MemoryBytes());
}

}  // namespace
}  // namespace minicpmv

int main() {
  using namespace minicpmv;
  const LineWriter writer(STDOUT_FILENO);
  try {
    SetThreads();
    const std::set<std::string> features = CpuFeatures();
    const BlockLibrary& blocks = ChooseBlocks(kBlockLibraries, features);
    writer.Write(Hello(features, blocks));
    RequestQueue queue(STDIN_FILENO, protocol::kLineLimit);
    Server({kTarget, kProgramId, blocks.prefix}, &writer).Run(&queue);
    return 0;
  } catch (const EngineError& error) {
    writer.Write(Line()
                     .Set(field::kEvent, event::kError)
                     .Set(field::kCode, error.code())
                     .Set(field::kMessage, error.what()));
    return 1;
  }
}
