// Requests in, events out: the engine's protocol over the model.
#ifndef MINICPMV_ENGINE_SERVER_H_
#define MINICPMV_ENGINE_SERVER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/engine/embeddings_file.h"
#include "runtime/engine/fields.h"
#include "runtime/engine/line_writer.h"
#include "runtime/engine/model.h"
#include "runtime/engine/request_queue.h"

namespace minicpmv {

// What a server says of the program that it is part of.
struct Program {
  std::string target, program_id;
  std::string prefix;  // of the chosen blocks in the system library
};

// Answers every request with exactly one `done` or `error` event, in the order in which they
// came, some with events before it. A request that fails changes nothing.
class Server {
 public:
  // writer: outlives this.
  Server(Program program, const LineWriter* writer);

  // Answers a queue's requests until the end of its input. What is loaded stays for the next.
  void Run(RequestQueue* queue);

 private:
  // The request that is being answered.
  struct Current {
    uint64_t number = 0;
    json::Value id;  // the client's, an integer or a text; null if it gave none
  };

  void Answer(const RequestLine& line);
  Line Dispatch(Fields* request);
  Line Load(Fields* request);
  Line Image(Fields* request);
  Line Chat(Fields* request);
  Line SaveImage(Fields* request);
  Line RestoreImage(Fields* request);
  Line SelfCheck(Fields* request);
  Line Bandwidth(Fields* request);
  Line TakeProfile(Fields* request);
  Line Tokenize(Fields* request);
  Line Detokenize(Fields* request);

  Model& RequireModel() const;
  const EncodedPicture* FindPicture(Fields* request) const;
  EmbeddingsIdentity Identity() const;
  WorkHooks Hooks(const char* stage) const;
  void Send(const char* event, Line line) const;

  const Program program_;
  const LineWriter& writer_;
  RequestQueue* queue_ = nullptr;  // in work
  std::unique_ptr<Model> model_;
  Current current_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_SERVER_H_
