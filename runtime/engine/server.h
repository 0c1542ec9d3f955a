// Serves the engine's protocol: requests in, events out.
#ifndef MINICPMV_ENGINE_SERVER_H_
#define MINICPMV_ENGINE_SERVER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/embeddings_file.h"
#include "runtime/engine/fields.h"
#include "runtime/engine/line_writer.h"
#include "runtime/engine/model.h"
#include "runtime/engine/regular_file.h"
#include "runtime/engine/request_queue.h"

namespace minicpmv {

// Identifies the program that the server is part of.
struct Program {
  std::string target, program_id;
  std::vector<std::string> kinds;  // prefixes of the blocks that the processor runs, best first
};

// Answers every request with exactly one `done` or `error` event, in order; other events may come
// before it. A request that fails changes nothing.
class Server {
 public:
  // writer: must outlive this object.
  Server(Program program, const LineWriter* writer);

  // Answers a queue's requests until the end of its input. A loaded model stays for the next queue.
  void Run(RequestQueue* queue);

 private:
  // The request being answered.
  struct Current {
    uint64_t number = 0;
    json::Value id;  // the client's, an integer or a string; null if there is none
  };

  void Answer(const RequestLine& line);
  Line Dispatch(Fields* request);
  Line Load(Fields* request);
  // Returns the blocks that compute a bundle: those that a file names, or that are measured.
  Kinds Choose(const Bundle& bundle, const std::optional<std::string>& kinds_file) const;
  // Reads the rest of a load's fields: where the weights are, unless they are the bundle's file.
  std::optional<RegularFile> TakeWeights(Fields* request) const;
  Line Image(Fields* request);
  Line Chat(Fields* request);
  Line SaveImage(Fields* request);
  Line RestoreImage(Fields* request);
  Line SelfCheck(Fields* request);
  Line Bandwidth(Fields* request);
  Line TakeProfile(Fields* request);
  Line Threads(Fields* request) const;
  Line Tokenize(Fields* request);
  Line Detokenize(Fields* request);

  Model& RequireModel() const;
  const EncodedPicture* FindPicture(Fields* request) const;
  EmbeddingsIdentity Identity() const;
  WorkHooks Hooks(const char* stage) const;
  void Send(const char* event, Line line) const;

  const Program program_;
  const LineWriter& writer_;
  RequestQueue* queue_ = nullptr;  // the one being served
  std::unique_ptr<Model> model_;
  Current current_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_SERVER_H_
