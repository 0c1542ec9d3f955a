#include "runtime/engine/matrix_unit.h"

#include <pthread.h>
#include <signal.h>

#include <csetjmp>
#include <cstdint>

#if defined(__aarch64__)
#include "runtime/engine/outer_products.h"
#elif defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>

#include "runtime/engine/tile_products.h"
#endif

namespace minicpmv {
namespace {

// Small, but with more than a tile of tokens, and with groups left over by every vector size.
constexpr int kLength = 17, kGroups = 5, kQuads = 2, kRows = 16, kTiles = 2;
constexpr uint16_t kOne = 0x3c00;  // as a float16

sigjmp_buf before_trap;

void LeaveTrap(int /*signal*/) { siglongjmp(before_trap, 1); }

int8_t Weight(int group, int quad, int row, int i) {
  return static_cast<int8_t>((group * 31 + quad * 17 + row * 7 + i * 3) % 255 - 127);
}

int8_t Token(int group, int quad, int token, int i) {
  return static_cast<int8_t>((group * 13 + quad * 29 + token * 5 + i * 11) % 255 - 127);
}

float Expected(int token, int row) {
  int sum = 0;
  for (int group = 0; group < kGroups; ++group) {
    for (int quad = 0; quad < kQuads; ++quad) {
      for (int i = 0; i < 4; ++i) {
        sum += Weight(group, quad, row, i) * Token(group, quad, token, i);
      }
    }
  }
  return static_cast<float>(sum);
}

// The factors of a trial: whole numbers with scales of one. Static: no memory is taken that a trap
// could leave behind.
struct Factors {
  int8_t weights[kGroups][kQuads][kRows][4];
  uint16_t steps[kGroups][kRows];
  int8_t tokens[kTiles * kRows * kGroups * kQuads * 4];  // as the unit takes them
  float scales[kTiles * kGroups * kRows];
  float out[kLength][kRows];

  // at: where a token's code lies, of (group, quad, token, i).
  template <typename Place>
  void Fill(Place at) {
    for (float& scale : scales) scale = 1;
    for (int group = 0; group < kGroups; ++group) {
      for (uint16_t& step : steps[group]) step = kOne;
      for (int quad = 0; quad < kQuads; ++quad) {
        for (int i = 0; i < 4; ++i) {
          for (int row = 0; row < kRows; ++row) {
            weights[group][quad][row][i] = Weight(group, quad, row, i);
          }
          for (int token = 0; token < kTiles * kRows; ++token) {
            tokens[at(group, quad, token, i)] = Token(group, quad, token, i);
          }
        }
      }
    }
  }

  bool IsRight() const {
    for (int token = 0; token < kLength; ++token) {
      for (int row = 0; row < kRows; ++row) {
        if (out[token][row] != Expected(token, row)) return false;
      }
    }
    return true;
  }
};

Factors factors;

#if defined(__aarch64__)

// Returns what is wrong with the unit, unless it traps first.
std::optional<std::string> Compute() {
  const int64_t bytes = minicpmv_streaming_bytes();
  if (bytes != 16 && bytes != 32 && bytes != 64) {
    return "its vectors have " + std::to_string(bytes) + " bytes; expected 16, 32 or 64";
  }
  factors.Fill([](int group, int quad, int token, int i) {
    const int tile = token / kRows, m = token % kRows;
    return (((tile * kGroups + group) * kQuads + quad) * kRows + m) * 4 + i;
  });
  minicpmv_outer_products(&factors.weights[0][0][0][0], &factors.steps[0][0], factors.tokens,
                          factors.scales, &factors.out[0][0], sizeof(factors.out[0]), kLength,
                          kRows, kGroups, kQuads);
  if (!factors.IsRight()) return "its results are wrong";
  return std::nullopt;
}

std::optional<std::string> AskPermission() { return std::nullopt; }

#elif defined(__x86_64__)

std::optional<std::string> Compute() {
  factors.Fill([](int group, int quad, int token, int i) {
    return ((token * kGroups + group) * kQuads + quad) * 4 + i;
  });
  minicpmv_tile_products(&factors.weights[0][0][0][0], &factors.steps[0][0], factors.tokens,
                         factors.scales, &factors.out[0][0], sizeof(factors.out[0]), kLength,
                         kRows, kGroups, kQuads);
  if (!factors.IsRight()) return "its results are wrong";
  return std::nullopt;
}

// Asks Linux, from 5.16 on, to save this process's tiles, which are too large to save unasked. The
// threads that it starts later inherit the permission.
std::optional<std::string> AskPermission() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) {
    return "the system does not permit it (Linux does from 5.16 on)";
  }
  // Tiles' shapes and tiles must be among the states that the system saves (XCR0).
  uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr uint32_t kTileStates = 3u << 17;
  if ((low & kTileStates) != kTileStates) return "the system does not save its tiles";
  return std::nullopt;
}

#endif

std::optional<std::string> Try() {
  if (auto problem = AskPermission()) return problem;
  struct sigaction handler = {}, previous = {};
  handler.sa_handler = LeaveTrap;
  if (sigaction(SIGILL, &handler, &previous) != 0) return "its traps cannot be caught";
  sigset_t illegal, mask;  // a trap that is blocked would end the process
  sigemptyset(&illegal);
  sigaddset(&illegal, SIGILL);
  pthread_sigmask(SIG_UNBLOCK, &illegal, &mask);
  std::optional<std::string> problem = "its instructions trap";
  // A trap also ends Arm's streaming mode.
  if (sigsetjmp(before_trap, 1) == 0) problem = Compute();
  pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  sigaction(SIGILL, &previous, nullptr);
  return problem;
}

}  // namespace

std::optional<std::string> MatrixUnitProblem() {
  static const std::optional<std::string> problem = Try();
  return problem;
}

}  // namespace minicpmv
