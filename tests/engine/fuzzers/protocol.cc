// Lines from outside, through a server with a loaded model.
//
// MINICPMV_FUZZ_BUNDLE names the bundle. The end of the input cancels what takes long.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "runtime/engine/build_info.h"
#include "runtime/engine/cpu_features.h"
#include "runtime/engine/line_writer.h"
#include "runtime/engine/request_queue.h"
#include "runtime/engine/server.h"

namespace minicpmv {
namespace {

constexpr size_t kLineLimit = 4096;
// While as many wait, the queue does not read on, and would not hear of the end.
constexpr int64_t kMaxLines = 15;

// Says whether a request could name a file outside the working folder.
bool LeavesFolder(std::string_view input) {
  return input.find('/') != std::string_view::npos ||
         input.find("\\u002") != std::string_view::npos ||
         input.find("..") != std::string_view::npos;
}

void Serve(Server* server, std::string_view lines) {
  const int file = memfd_create("lines", MFD_CLOEXEC);
  if (file < 0 || write(file, lines.data(), lines.size()) != static_cast<ssize_t>(lines.size()) ||
      lseek(file, 0, SEEK_SET) != 0) {
    std::abort();
  }
  {
    RequestQueue queue(file, kLineLimit);
    server->Run(&queue);
  }
  close(file);
}

Server* LoadedServer() {
  static const LineWriter writer(open("/dev/null", O_WRONLY | O_CLOEXEC));
  const BlockLibrary& blocks = ChooseBlocks(kBlockLibraries, CpuFeatures());
  static Server server({kTarget, kProgramId, blocks.prefix}, &writer);
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
