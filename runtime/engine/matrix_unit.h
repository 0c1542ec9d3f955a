// A trial of the processor's matrix unit.
#ifndef MINICPMV_ENGINE_MATRIX_UNIT_H_
#define MINICPMV_ENGINE_MATRIX_UNIT_H_

#include <optional>
#include <string>

namespace minicpmv {

// Says what is wrong with the matrix unit (Arm's SME, x86's AMX), whether or not the processor
// announces it: the system does not permit its use, its instructions trap (under a hypervisor that
// does not allow them), its vectors have a size that the kernels do not know, or its results are
// wrong (in an emulator). Returns nullopt if it works.
// The first call asks for the permission, tries the unit, and handles SIGILL meanwhile.
std::optional<std::string> MatrixUnitProblem();

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_MATRIX_UNIT_H_
