#include "runtime/engine/matrix_unit.h"

#if defined(__aarch64__)

#include <pthread.h>
#include <signal.h>

#include <csetjmp>
#include <cstdint>

#include "runtime/engine/outer_products.h"

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

// Multiplies whole numbers with scales of one. No memory is taken that a trap could leave behind.
bool ComputesRightly() {
  static int8_t weights[kGroups][kQuads][kRows][4], tokens[kTiles][kGroups][kQuads][kRows][4];
  static uint16_t steps[kGroups][kRows];
  static float scales[kTiles][kGroups][kRows], out[kLength][kRows];
  for (int group = 0; group < kGroups; ++group) {
    for (int row = 0; row < kRows; ++row) {
      steps[group][row] = kOne;
      for (int tile = 0; tile < kTiles; ++tile) {
        scales[tile][group][row] = 1;
        for (int at = 0; at < 4 * kQuads; ++at) {
          const int quad = at / 4, i = at % 4;
          weights[group][quad][row][i] = Weight(group, quad, row, i);
          tokens[tile][group][quad][row][i] = Token(group, quad, tile * kRows + row, i);
        }
      }
    }
  }
  minicpmv_outer_products(&weights[0][0][0][0], &steps[0][0], &tokens[0][0][0][0][0],
                          &scales[0][0][0], &out[0][0], sizeof(out[0]), kLength, kRows, kGroups,
                          kQuads);
  for (int token = 0; token < kLength; ++token) {
    for (int row = 0; row < kRows; ++row) {
      if (out[token][row] != Expected(token, row)) return false;
    }
  }
  return true;
}

std::optional<std::string> Try() {
  struct sigaction handler = {}, previous = {};
  handler.sa_handler = LeaveTrap;
  if (sigaction(SIGILL, &handler, &previous) != 0) return "its traps cannot be caught";
  sigset_t illegal, mask;  // a trap that is blocked would end the process
  sigemptyset(&illegal);
  sigaddset(&illegal, SIGILL);
  pthread_sigmask(SIG_UNBLOCK, &illegal, &mask);
  volatile int64_t bytes = 0;
  volatile bool right = false;
  const bool trapped = sigsetjmp(before_trap, 1) != 0;  // a trap also ends the streaming mode
  if (!trapped) {
    bytes = minicpmv_streaming_bytes();
    if (bytes == 16 || bytes == 32 || bytes == 64) right = ComputesRightly();
  }
  pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  sigaction(SIGILL, &previous, nullptr);
  if (trapped) return "its instructions trap";
  if (bytes != 16 && bytes != 32 && bytes != 64) {
    return "its vectors have " + std::to_string(bytes) + " bytes; expected 16, 32 or 64";
  }
  if (!right) return "its results are wrong";
  return std::nullopt;
}

}  // namespace

std::optional<std::string> MatrixUnitProblem() {
  static const std::optional<std::string> problem = Try();
  return problem;
}

}  // namespace minicpmv

#endif
