// Runs single stages of the model from file to file, for comparison with the reference.
#ifndef MINICPMV_ENGINE_TAPS_H_
#define MINICPMV_ENGINE_TAPS_H_

#include <functional>

#include "runtime/engine/fields.h"
#include "runtime/engine/line_writer.h"
#include "runtime/engine/model.h"

namespace minicpmv {

// Runs the stage that a request names (PROTOCOL.md lists its fields) and writes the output file.
// The conversation in the model's cache is not touched.
// cancelled: polled before every block.
// Returns the fields of the answer.
// Throws EngineError: invalid_request, file_error, invalid_picture, not_loaded, cancelled.
Line RunTap(Fields* request, Model* model, const std::function<bool()>& cancelled);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_TAPS_H_
