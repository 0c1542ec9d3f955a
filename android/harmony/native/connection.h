// An engine in this process, at the other end of a socket pair.
#ifndef MINICPMV_HARMONY_CONNECTION_H_
#define MINICPMV_HARMONY_CONNECTION_H_

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

namespace minicpmv {

// An error that JavaScript gets, with a name in `code`.
class ModuleError : public std::runtime_error {
 public:
  ModuleError(const char* code, const std::string& message)
      : std::runtime_error(message), code_(code) {}
  const char* code() const { return code_; }

 private:
  const char* code_;
};

namespace module_error {
constexpr char kInvalidArgument[] = "invalid_argument";  // a call is wrong
constexpr char kClosed[] = "closed";                     // the engine has been closed, or has ended
constexpr char kBusy[] = "busy";                         // too much waits for the engine already
constexpr char kFileError[] = "file_error";              // no descriptor is left
constexpr char kOutOfMemory[] = "out_of_memory";         // no memory or no thread is left
}  // namespace module_error

// A file descriptor that is closed when it goes out of scope.
class Descriptor {
 public:
  Descriptor() = default;
  ~Descriptor() { Close(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  void Set(int number) { number_ = number; }
  int get() const { return number_; }
  void Close();

 private:
  int number_ = -1;
};

// Runs `engine_main` on one thread and its input and output on another, so that the thread that
// uses it never waits.
class Connection {
 public:
  // Gets what the engine says, on a thread of the connection.
  class Listener {
   public:
    virtual ~Listener() = default;
    // Takes a line, whose bytes count as waiting until `Taken`. Returns false if nobody wants any
    // more.
    virtual bool OnLine(std::string line) = 0;
    // The engine has ended; nothing follows.
    virtual void OnEnd() = 0;
  };

  // Starts an engine. `listener` must outlive the connection.
  // Throws ModuleError (file_error, out_of_memory).
  explicit Connection(Listener* listener);
  // Ends the engine, without further lines, and waits until its threads have ended.
  ~Connection();

  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Queues a request, a line without its end.
  // Throws ModuleError (busy, closed, invalid_argument).
  void Send(const std::string& line);
  // Ends the input; requests that are still queued are dropped. The engine cancels what runs, says
  // so, and ends.
  void Close();
  // A line of that many bytes has been dealt with. The engine waits while too much has not.
  void Taken(size_t bytes);

 private:
  void RunEngine();
  void Exchange();
  bool Write();
  bool Read(std::string* partial);
  bool Publish(std::string line);
  void Wake();

  Listener* const listener_;
  Descriptor ours_, engines_, wake_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::string> queue_;  // requests with their ends, guarded by mutex_
  size_t queued_bytes_ = 0;        // of them, guarded by mutex_
  size_t waiting_bytes_ = 0;       // of lines not yet taken, guarded by mutex_
  bool is_closed_ = false;         // no requests any more, guarded by mutex_
  bool is_abandoned_ = false;      // nobody wants lines any more, guarded by mutex_
  size_t written_bytes_ = 0;       // of the first request; the exchange's
  std::thread engine_, exchange_;
};

}  // namespace minicpmv

#endif  // MINICPMV_HARMONY_CONNECTION_H_
