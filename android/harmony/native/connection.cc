#include "android/harmony/native/connection.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <new>
#include <system_error>
#include <utility>
#include <vector>

#include "runtime/engine/engine_main.h"

namespace minicpmv {
namespace {

constexpr size_t kMostQueuedBytes = 48 << 20;   // a little more than two of the longest lines
constexpr size_t kMostWaitingBytes = 1 << 20;   // of lines that JavaScript has not taken
constexpr size_t kReadBytes = 64 << 10;

int Checked(int result, const char* what) {
  if (result < 0) {
    throw ModuleError(module_error::kFileError,
                      std::string(what) + ": " + std::strerror(errno));
  }
  return result;
}

}  // namespace

void Descriptor::Close() {
  if (number_ >= 0) close(number_);
  number_ = -1;
}

Connection::Connection(Listener* listener) : listener_(listener) {
  int ends[2];
  Checked(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), "no socket can be opened");
  ours_.Set(ends[0]);
  engines_.Set(ends[1]);
  Checked(fcntl(ours_.get(), F_SETFL, O_NONBLOCK), "the socket cannot be set up");
  wake_.Set(Checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "no event can be opened"));
  try {
    engine_ = std::thread([this] { RunEngine(); });
    exchange_ = std::thread([this] { Exchange(); });
  } catch (const std::system_error& error) {
    if (engine_.joinable()) {
      ours_.Close();
      engine_.join();
    }
    throw ModuleError(module_error::kOutOfMemory,
                      std::string("no thread can be started: ") + error.what());
  }
}

Connection::~Connection() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_closed_ = is_abandoned_ = true;
  }
  changed_.notify_all();
  Wake();
  exchange_.join();
}

void Connection::Send(const std::string& line) {
  if (line.find('\n') != std::string::npos) {
    throw ModuleError(module_error::kInvalidArgument, "a request has one line");
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (is_closed_) throw ModuleError(module_error::kClosed, "the engine has been closed");
    if (queued_bytes_ + line.size() > kMostQueuedBytes) {
      throw ModuleError(module_error::kBusy, "too many requests wait for the engine already");
    }
    queue_.push_back(line + "\n");
    queued_bytes_ += queue_.back().size();
  }
  Wake();
}

void Connection::Close() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_closed_ = true;
  }
  Wake();
}

void Connection::Taken(size_t bytes) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_bytes_ -= bytes;
  }
  changed_.notify_all();
}

void Connection::RunEngine() {
  engine_main(engines_.get(), engines_.get());
  engines_.Close();  // the exchange reads to the end
}

// Carries requests and lines until the engine has ended.
void Connection::Exchange() {
  try {
    std::string partial;
    for (bool is_open = true; is_open;) {
      const bool has_more = Write();
      pollfd waits[] = {{ours_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
      if (has_more) waits[0].events |= POLLOUT;
      if (poll(waits, 2, -1) < 0) continue;  // a signal came
      uint64_t count;
      if (waits[1].revents != 0) (void)!read(wake_.get(), &count, sizeof(count));
      if (waits[0].revents & ~POLLOUT) is_open = Read(&partial);
    }
  } catch (const std::bad_alloc&) {
    // The end of the connection tells JavaScript, and ends the engine.
  }
  ours_.Close();
  engine_.join();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_closed_ = true;
  }
  listener_->OnEnd();
}

// Writes requests, as many as the socket takes. Returns whether some are left.
bool Connection::Write() {
  for (;;) {
    const std::string* first = nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (is_closed_) {
        queue_.clear();
        queued_bytes_ = written_bytes_ = 0;
        // An engine that is abandoned ends at its next event, even if it does not read now.
        shutdown(ours_.get(), is_abandoned_ ? SHUT_RDWR : SHUT_WR);
      }
      if (queue_.empty()) return false;
      first = &queue_.front();  // a deque's items stay where they are
    }
    const ssize_t written = send(ours_.get(), first->data() + written_bytes_,
                                 first->size() - written_bytes_, MSG_NOSIGNAL);
    if (written < 0) return errno == EAGAIN || errno == EINTR;  // else it has ended: see `Read`
    written_bytes_ += static_cast<size_t>(written);
    if (written_bytes_ == first->size()) {
      const std::lock_guard<std::mutex> lock(mutex_);
      queued_bytes_ -= first->size();
      queue_.pop_front();
      written_bytes_ = 0;
    }
  }
}

// Reads what there is, and passes on whole lines. Returns false at the end.
bool Connection::Read(std::string* partial) {
  std::vector<char> block(kReadBytes);
  const ssize_t size = recv(ours_.get(), block.data(), block.size(), 0);
  if (size < 0) return errno == EAGAIN || errno == EINTR;
  if (size == 0) return false;
  const char* const end = block.data() + size;
  const char* at = block.data();
  while (const void* found = std::memchr(at, '\n', static_cast<size_t>(end - at))) {
    const char* const line_end = static_cast<const char*>(found);
    partial->append(at, line_end);
    if (!Publish(std::exchange(*partial, std::string()))) {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_closed_ = is_abandoned_ = true;
    }
    at = line_end + 1;
  }
  partial->append(at, end);
  return true;
}

// Passes on a line, after waiting until there is room. Returns false if nobody wants any more.
bool Connection::Publish(std::string line) {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return is_abandoned_ || waiting_bytes_ < kMostWaitingBytes; });
    if (is_abandoned_) return false;
    waiting_bytes_ += line.size();
  }
  return listener_->OnLine(std::move(line));
}

void Connection::Wake() {
  const uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof(one));  // a full counter wakes, too
}

}  // namespace minicpmv
