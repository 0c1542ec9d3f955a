// Fuzzes request lines, with a server that has a model loaded.
//
// MINICPMV_FUZZ_BUNDLE is the bundle's path. The end of the input cancels long requests.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/engine/build_info.h"
#include "runtime/engine/cores.h"
#include "runtime/engine/cpu_features.h"
#include "runtime/engine/line_writer.h"
#include "runtime/engine/request_queue.h"
#include "runtime/engine/server.h"
#include "runtime/engine/thread_pool.h"

namespace minicpmv {
namespace {

constexpr size_t kLineLimit = 4096;
// With this many lines queued, the queue stops reading and would not see the end of the input.
constexpr int64_t kMaxLines = 15;

// Returns whether a request could name a file outside the working folder.
bool LeavesFolder(std::string_view input) {
  return input.find('/') != std::string_view::npos ||
         input.find("\\u002") != std::string_view::npos ||
         input.find("..") != std::string_view::npos;
}

ThreadPool& Pool() {
  static ThreadPool pool(PlanThreads());
  return pool;
}

void Serve(Server* server, std::string_view lines) {
  const int file = memfd_create("lines", MFD_CLOEXEC);
  if (file < 0 || write(file, lines.data(), lines.size()) != static_cast<ssize_t>(lines.size()) ||
      lseek(file, 0, SEEK_SET) != 0) {
    std::abort();
  }
  {
    RequestQueue queue(file, kLineLimit, &Pool());
    server->Run(&queue);
  }
  close(file);
}

Server* LoadedServer() {
  static const LineWriter writer(open("/dev/null", O_WRONLY | O_CLOEXEC));
  std::vector<std::string> refused;
  const auto kinds = RunnableBlocks(kBlockLibraries, CpuFeatures(&refused));
  static Server server({kTarget, kProgramId, kinds}, &writer);
  const char* bundle = std::getenv("MINICPMV_FUZZ_BUNDLE");
  if (bundle == nullptr) std::abort();
  Serve(&server, std::string(R"({"op": "load", "window": 64, "bundle": ")") + bundle + "\"}\n");
  return &server;
}

}  // namespace
}  // namespace minicpmv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static minicpmv::Server* const server = minicpmv::LoadedServer();
  const std::string_view lines(reinterpret_cast<const char*>(data), size);
  if (minicpmv::LeavesFolder(lines)) return -1;
  if (std::count(lines.begin(), lines.end(), '\n') > minicpmv::kMaxLines) return -1;
  minicpmv::Serve(server, lines);
  return 0;
}
