// Requests from stdin, read while the engine is at work, so that a cancel is heard.
#ifndef MINICPMV_ENGINE_REQUEST_QUEUE_H_
#define MINICPMV_ENGINE_REQUEST_QUEUE_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

namespace minicpmv {

// A line, as it came.
struct RequestLine {
  uint64_t number;  // of the lines so far
  bool too_long;    // longer than the limit: its text is dropped
  std::string text;
};

// Reads lines in a thread of its own, until the end of the input. A cancel ends every request
// that came before it, and so does the end of the input.
class RequestQueue {
 public:
  // fd: closed by nobody. line_limit: bytes without the newline.
  RequestQueue(int fd, size_t line_limit);
  // Waits for the end of the input.
  ~RequestQueue();

  RequestQueue(const RequestQueue&) = delete;
  RequestQueue& operator=(const RequestQueue&) = delete;

  // Waits for the next line; nothing at the end of the input.
  std::optional<RequestLine> Next();

  // Says whether a request was cancelled.
  bool Cancelled(uint64_t number) const { return number < cancelled_before_; }

 private:
  void Read();
  void Take(const char* bytes, size_t count);
  void EndLine();

  const int fd_;
  const size_t line_limit_;
  RequestLine line_{1, false, {}};  // under construction
  std::atomic<uint64_t> cancelled_before_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<RequestLine> lines_;
  bool ended_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_REQUEST_QUEUE_H_
