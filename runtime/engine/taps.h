// Single stages of the model from file to file, for comparison with the reference.
#ifndef MINICPMV_ENGINE_TAPS_H_
#define MINICPMV_ENGINE_TAPS_H_

#include <functional>

#include "runtime/engine/fields.h"
#include "runtime/engine/model.h"

namespace minicpmv {

// Runs the stage that a request names (its fields stand in PROTOCOL.md) and writes the output's
// file. The conversation in the model's cache is not touched.
// cancelled: asked before every block.
// Returns the output's shape.
// Throws EngineError: invalid_request, file_error, invalid_picture, not_loaded, cancelled.
Shape RunTap(Fields* request, Model* model, const std::function<bool()>& cancelled);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_TAPS_H_
