#include "runtime/engine/handover.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>

#include "runtime/engine/error.h"

namespace minicpmv {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kPatience(10);  // the client connects at once, or not at all
constexpr int kPollMs = 50;                    // between looks at whether the request is cancelled
constexpr size_t kFamilyBytes = offsetof(sockaddr_un, sun_path);

[[noreturn]] void Fail(const std::string& what) {
  throw EngineError(error_code::kFileError, "the weights were not handed over: " + what);
}

// Waits until a socket has something to read.
void AwaitReadable(int fd, Clock::time_point end, const std::function<bool()>& cancelled) {
  while (true) {
    if (cancelled()) throw EngineError(error_code::kCancelled, "the load was cancelled");
    if (Clock::now() > end) Fail("nobody sent them in time");
    pollfd readable{fd, POLLIN, 0};
    const int count = poll(&readable, 1, kPollMs);
    if (count < 0 && errno != EINTR) Fail(std::strerror(errno));
    if (count > 0) return;
  }
}

bool IsOurUser(int connection) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  return getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
         peer.uid == geteuid();
}

// Returns the descriptor that came with a message; -1 if none did.
int DescriptorOf(msghdr* message) {
  const cmsghdr* part = CMSG_FIRSTHDR(message);
  if (part == nullptr || part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) return -1;
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(part), sizeof(fd));
  return fd;
}

}  // namespace

Handover::Handover() : listening_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socklen_t size = sizeof(address);
  // Without a name, the kernel chooses one that is free.
  if (listening_.get() < 0 ||
      bind(listening_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(sa_family_t)) != 0 ||
      listen(listening_.get(), 1) != 0 ||
      getsockname(listening_.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    Fail(std::strerror(errno));
  }
  name_.assign(address.sun_path + 1, std::max<size_t>(size, kFamilyBytes + 1) - kFamilyBytes - 1);
}

int Handover::Receive(const std::function<bool()>& cancelled) const {
  const Descriptor connection(Accept(cancelled));
  char byte;
  iovec content{&byte, 1};
  // The length, unlike the space, is that of one descriptor: the kernel closes further ones.
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &content;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = CMSG_LEN(sizeof(int));
  AwaitReadable(connection.get(), Clock::now() + kPatience, cancelled);
  const ssize_t count = recvmsg(connection.get(), &message, MSG_CMSG_CLOEXEC);
  if (count < 0) Fail(std::strerror(errno));
  const int fd = DescriptorOf(&message);
  if (fd < 0) Fail("a message without a descriptor came");
  return fd;
}

// Returns a connection of this process's user; others are closed.
int Handover::Accept(const std::function<bool()>& cancelled) const {
  const Clock::time_point end = Clock::now() + kPatience;
  while (true) {
    AwaitReadable(listening_.get(), end, cancelled);
    const int connection = accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) Fail(std::strerror(errno));
    if (IsOurUser(connection)) return connection;
    close(connection);
  }
}

}  // namespace minicpmv
