#include "runtime/engine/picture_fields.h"

#include <string>
#include <vector>

#include "runtime/engine/chat_fields.h"
#include "runtime/engine/protocol.h"

namespace minicpmv {
namespace {

namespace field = protocol::field;

void RequireSlices(const Fields& request, const char* name, const VisionConfig& c) {
  if (c.slices) return;
  request.Refuse(std::string(name) +
                 ": this model resizes every picture to one square; leave it out");
}

}  // namespace

std::optional<int64_t> TakeMaxSlices(Fields* request, const VisionConfig& c) {
  const auto most = request->OptionalInteger(field::kMaxSlices, 0);
  if (!most) return std::nullopt;
  RequireSlices(*request, field::kMaxSlices, c);
  if (*most < 1 || *most > c.max_slices()) {
    request->Refuse("max_slices is " + std::to_string(*most) +
                    "; this model takes 1 (the overview only) to " +
                    std::to_string(c.max_slices()));
  }
  return most;
}

Grid TakeGrid(Fields* request, const VisionConfig& c) {
  if (!request->Has(field::kGrid)) return {};
  const std::vector<int64_t> sides = request->Integers(field::kGrid);
  RequireSlices(*request, field::kGrid, c);
  if (sides.size() != 2 || sides[0] < 1 || sides[1] < 1 || sides[0] > c.max_slices() / sides[1]) {
    request->Refuse("grid: expected columns and rows of at most " +
                    std::to_string(c.max_slices()) + " slices");
  }
  return {sides[0], sides[1]};
}

void SetGrid(Grid grid, Line* line) {
  if (grid.empty()) return;
  line->Set(field::kGrid, ToJson(std::vector<int64_t>{grid.columns, grid.rows}));
}

}  // namespace minicpmv
