// Reads past a buffer, overflows an integer, or leaks memory, to test that the sanitizers detect
// it.
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

int main(int count, char** arguments) {
  std::vector<uint8_t> bytes(8);
  int32_t number = std::numeric_limits<int32_t>::max();
  const std::string kind = count > 1 ? arguments[1] : "";
  if (kind == "buffer")
    std::printf("%d\n", bytes.data()[bytes.size() + static_cast<size_t>(count)]);
  if (kind == "number") std::printf("%d\n", number + count);
  if (kind == "memory") {
    for (volatile char* lost : {new char[8], new char[8]}) *lost = 1;
  }
  return 0;
}
