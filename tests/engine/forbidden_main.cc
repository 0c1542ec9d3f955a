// Makes system calls that Android 8 forbids, to test the test that detects them.
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <thread>

int main() {
  constexpr long kNobodysCall = 4000;
  char bytes[8];
  std::thread([&] { syscall(SYS_getrandom, bytes, sizeof(bytes), 0); }).join();
  syscall(SYS_statx, AT_FDCWD, "/", 0, 0, nullptr);
  syscall(kNobodysCall);
  return 0;
}
