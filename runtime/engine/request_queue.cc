#include "runtime/engine/request_queue.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "runtime/engine/error.h"
#include "runtime/engine/json.h"
#include "runtime/engine/protocol.h"

namespace minicpmv {
namespace {

constexpr size_t kReadBytes = 1 << 16;
constexpr size_t kMaxWaiting = 16;  // lines; at that point reading pauses
// Requests that take effect when they are read are short, so longer lines are not parsed twice.
constexpr size_t kAtOnceLimit = 1 << 10;  // bytes

}  // namespace

int TakeThreads(Fields* request, int most) {
  const int64_t threads = request->OptionalInteger(protocol::field::kThreads, 1).value_or(most);
  request->RefuseUnknown();
  if (threads > most) {
    request->Refuse("threads: expected at most " + std::to_string(most));
  }
  return static_cast<int>(threads);
}

RequestQueue::RequestQueue(int fd, size_t line_limit, ThreadPool* pool)
    : fd_(fd), line_limit_(line_limit), pool_(*pool), thread_([this] { Read(); }) {}

RequestQueue::~RequestQueue() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }
  stop_.Signal();
}

std::optional<RequestLine> RequestQueue::Next() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return !lines_.empty() || ended_; });
  if (lines_.empty()) {
    if (failure_) std::rethrow_exception(failure_);
    return std::nullopt;
  }
  RequestLine line = std::move(lines_.front());
  lines_.pop_front();
  changed_.notify_all();
  return line;
}

void RequestQueue::Read() {
  std::exception_ptr failure;
  try {
    ReadAll();
  } catch (...) {
    failure = std::current_exception();
  }
  cancelled_before_ = std::numeric_limits<uint64_t>::max();
  const std::lock_guard<std::mutex> lock(mutex_);
  ended_ = true;
  failure_ = failure;
  changed_.notify_all();
}

void RequestQueue::ReadAll() {
  std::string bytes(kReadBytes, '\0');
  while (const size_t count = ReadSome(&bytes)) Take(bytes.data(), count);
  if (!line_.text.empty() || line_.too_long) EndLine();
}

// Returns how many bytes were read; 0 at the end of the input, and once reading is to stop.
size_t RequestQueue::ReadSome(std::string* bytes) {
  for (;;) {
    pollfd ready[] = {{fd_, POLLIN, 0}, {stop_.readable(), POLLIN, 0}};
    if (poll(ready, 2, -1) > 0 && ready[1].revents != 0) return 0;
    const ssize_t count = read(fd_, bytes->data(), bytes->size());
    if (count >= 0) return static_cast<size_t>(count);
    if (errno == ECONNRESET) return 0;  // a socket whose other end is gone
    if (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK) {
      throw EngineError(error_code::kFileError,
                        std::string("the requests cannot be read: ") + std::strerror(errno));
    }
  }
}

void RequestQueue::Take(const char* bytes, size_t count) {
  while (count > 0) {
    const auto* newline = static_cast<const char*>(std::memchr(bytes, '\n', count));
    const size_t part = newline == nullptr ? count : static_cast<size_t>(newline - bytes);
    if (line_.too_long || part > line_limit_ - line_.text.size()) {
      line_.too_long = true;
      line_.text = std::string();
    } else {
      line_.text.append(bytes, part);
    }
    if (newline == nullptr) return;
    EndLine();
    bytes += part + 1;
    count -= part + 1;
  }
}

void RequestQueue::EndLine() {
  const uint64_t number = line_.number;
  ActAtOnce();
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return lines_.size() < kMaxWaiting || stopped_; });
  lines_.push_back(std::exchange(line_, RequestLine{number + 1, false, {}}));
  changed_.notify_all();
}

// Does what does not wait for the requests before this one. The server answers it in its turn, and
// reports what is wrong with it.
void RequestQueue::ActAtOnce() {
  namespace op = protocol::op;
  const std::string& text = line_.text;
  const auto has = [&text](const char* name) { return text.find(name) != std::string::npos; };
  if (text.size() > kAtOnceLimit || !(has(op::kCancel) || has(op::kThreads))) return;
  try {
    Fields request(ParseJson(text, error_code::kInvalidRequest, "request"),
                   error_code::kInvalidRequest, "request");
    const auto name = request.OptionalString(protocol::field::kOp);
    if (name == op::kCancel) cancelled_before_ = line_.number;
    if (name != op::kThreads) return;
    request.Id(protocol::field::kId);
    pool_.Use(TakeThreads(&request, pool_.threads()));
  } catch (const EngineError&) {
    return;
  }
}

}  // namespace minicpmv
