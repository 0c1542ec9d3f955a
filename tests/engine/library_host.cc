// A process that loads the engine's shared library, for tests.
//
//   library_host LIBRARY         runs an engine on stdin and stdout; exits with its result
//   library_host LIBRARY SOCKET  runs an engine on each connection to a Unix socket, both ways and
//                                non-blocking, and prints a line with its result
//   library_host LIBRARY IN OUT  runs an engine on descriptors with these numbers
//
// A library that starts the engine's in its place exports `stand_in_main`, with the same arguments.
#include <dlfcn.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" char** environ;

namespace {

constexpr size_t kStackBytes = 64 << 10;  // the engine must not depend on its caller's stack

int (*engine_main)(int, int);

struct Run {
  int in_fd, out_fd, result;
};

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::exit(70);
}

void* RunEngine(void* argument) {
  auto* run = static_cast<Run*>(argument);
  run->result = engine_main(run->in_fd, run->out_fd);
  return nullptr;
}

pthread_t Start(void* (*work)(void*), void* argument) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  pthread_t thread;
  if (pthread_create(&thread, &attributes, work, argument) != 0) Fail("no thread");
  return thread;
}

void* ServeConnection(void* argument) {
  const int connection = *static_cast<int*>(argument);
  delete static_cast<int*>(argument);
  Run run{connection, connection, 0};
  RunEngine(&run);
  char line[32];  // in one write: other threads print theirs
  const int size = std::snprintf(line, sizeof(line), "%d\n", run.result);
  if (write(STDOUT_FILENO, line, static_cast<size_t>(size)) != size) Fail("no reader");
  close(connection);
  return nullptr;
}

void Listen(const char* path) {
  const int listening = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
  if (bind(listening, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(listening, 8) != 0) {
    Fail("cannot listen");
  }
  for (;;) {
    const int connection = accept4(listening, nullptr, nullptr, SOCK_NONBLOCK);
    if (connection < 0) Fail("cannot accept");
    pthread_detach(Start(ServeConnection, new int(connection)));
  }
}

size_t CountVariables() {
  size_t count = 0;
  while (environ != nullptr && environ[count] != nullptr) ++count;
  return count;
}

int Main(int count, char** arguments, char**) {
  if (count < 2 || count > 4) Fail("usage: library_host LIBRARY [SOCKET | IN OUT]");
  void* const library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) Fail(dlerror());
  void* entry = dlsym(library, "stand_in_main");
  if (entry == nullptr) entry = dlsym(library, "engine_main");
  engine_main = reinterpret_cast<int (*)(int, int)>(entry);
  if (engine_main == nullptr) Fail(dlerror());
  if (count == 3) Listen(arguments[2]);
  Run run{STDIN_FILENO, STDOUT_FILENO, 0};
  if (count == 4) run = {std::atoi(arguments[2]), std::atoi(arguments[3]), 0};
  const size_t variables = CountVariables();
  pthread_join(Start(RunEngine, &run), nullptr);
  if (CountVariables() != variables) Fail("the environment has changed");
  return run.result;
}

}  // namespace

// The start of a program, which otherwise takes an object file and a C++ library of zig's.
extern "C" int __libc_start_main(int (*)(int, char**, char**), int, char**, void (*)(), void (*)(),
                                 void (*)());
extern "C" __attribute__((used, noreturn)) void StartOnStack(long* stack) {
  __libc_start_main(Main, static_cast<int>(stack[0]), reinterpret_cast<char**>(stack + 1), nullptr,
                    nullptr, nullptr);
  __builtin_unreachable();
}
#ifdef __aarch64__
asm(".globl _start\n_start: mov x29, #0\n mov x30, #0\n mov x0, sp\n b StartOnStack\n");
#else
asm(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call StartOnStack\n");
#endif
