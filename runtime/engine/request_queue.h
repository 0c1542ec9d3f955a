// Reads requests in the background, so that some take effect while another one runs.
#ifndef MINICPMV_ENGINE_REQUEST_QUEUE_H_
#define MINICPMV_ENGINE_REQUEST_QUEUE_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <string>

#include "runtime/engine/descriptor.h"
#include "runtime/engine/fields.h"
#include "runtime/engine/thread.h"
#include "runtime/engine/thread_pool.h"

namespace minicpmv {

// A line as it was read.
struct RequestLine {
  uint64_t number;  // counts lines
  bool too_long;    // longer than the limit; its text is dropped
  std::string text;
};

// Reads the field of a request for threads: 1 to the number that a pool has, which is the default.
// Throws EngineError: see `Fields`.
int TakeThreads(Fields* request, int most);

// Reads lines on its own thread until the end of the input. A cancel ends every request before it,
// and so does the end of the input. A request for threads takes effect when it is read.
class RequestQueue {
 public:
  // fd: not closed; may be non-blocking. line_limit: bytes without the newline.
  // pool: must outlive this object.
  // Throws EngineError (out_of_memory): no thread or descriptor is left.
  RequestQueue(int fd, size_t line_limit, ThreadPool* pool);
  // Stops reading; does not wait for the end of the input.
  ~RequestQueue();

  RequestQueue(const RequestQueue&) = delete;
  RequestQueue& operator=(const RequestQueue&) = delete;

  // Waits for the next line; nullopt at the end of the input.
  // Throws EngineError (file_error), std::bad_alloc: why reading ended, after the last line.
  std::optional<RequestLine> Next();

  // The threads that compute.
  const ThreadPool& pool() const { return pool_; }

  // Returns whether a request was cancelled.
  bool Cancelled(uint64_t number) const { return number < cancelled_before_; }

 private:
  void Read();
  void ReadAll();
  size_t ReadSome(std::string* bytes);
  void Take(const char* bytes, size_t count);
  void EndLine();
  void ActAtOnce();

  const int fd_;
  const size_t line_limit_;
  ThreadPool& pool_;
  RequestLine line_{1, false, {}};  // the line being read
  std::atomic<uint64_t> cancelled_before_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<RequestLine> lines_;
  bool ended_ = false;          // no line will follow
  std::exception_ptr failure_;  // why; null at the end of the input
  bool stopped_ = false;        // nobody will ask for the next line
  const WakePipe stop_;         // readable once stopped
  Thread thread_;               // last: it uses the members above
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_REQUEST_QUEUE_H_
